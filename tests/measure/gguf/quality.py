"""Compare the quality of GGUF files here and in llama.cpp.

    python -m tests.measure.gguf.quality --llama BIN [--text FILE ...] [--chunks N] [--type TYPE ...] [FILE.gguf ...]

BIN is the folder of llama-perplexity. Each --type compares the bundled model, which llama-quantize is run on first
(tests/measure/gguf/quantized_demo.py). Without --text it uses the Python files that the bundled model was not trained
on. Prints, per file and text, the perplexity of the same text by the same rule (windows of 256 tokens that start with
<s>, the second half counts), and the distance of log probabilities from those of the decoded weights in float32: their
root mean square, which the few tokens decide that are sent to other experts, and the median over positions of each
position's. llama-perplexity writes log probabilities in steps of 0.0002; both sides leave out those near its lower
limit. With several texts a row for all of them follows.

In brackets: intervals of 95 % by drawing windows anew, the same for both programs. Those of the perplexity leave out
tokens near the lower limit, too.
"""

import argparse
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from model.checkpoint.checkpoint import read_config
from model.demo.training.corpus import load_python
from model.forward_batch import ForwardBatch
from model.kv_format import KvDtype
from model.kv_pool import KvPool
from model.loader import LoadOptions, load_model
from model.mixtral import Mixtral
from model.ops.interface import Ops
from model.ops.native.library import NativeLibrary
from model.ops.native.ops import NativeOps
from model.ops.reference.ops import ReferenceOps
from tests.measure.gguf.bootstrap import Windows, bootstrap_interval
from tests.measure.gguf.quantized_demo import write_quantized

CPU = torch.device("cpu")
CONTEXT_LEN = 256
FIRST_SCORED = CONTEXT_LEN // 2
NUM_SCORED = CONTEXT_LEN - 1 - FIRST_SCORED
ATTEMPTS = 5  # llama-perplexity can end before its last lines are printed
MAX_CHARACTERS_PER_TOKEN = 6  # of the text, on average
CLIPPED_NATS = 14.0  # below the likeliest token; llama-perplexity clips at 16


@dataclass(frozen=True)
class SavedLogits:
    """llama-perplexity's tokens [chunks, CONTEXT_LEN] and log probabilities [chunks, NUM_SCORED, V]."""

    token_ids: Tensor
    logprobs: Tensor


@dataclass
class Score:
    """One program's scored positions: lists are by window, distances by position."""

    nats: list[float] = field(default_factory=list)  # of the next tokens
    paired_nats: list[float] = field(default_factory=list)  # of those that are not near the lower limit
    squares: list[float] = field(default_factory=list)
    num_logprobs: list[int] = field(default_factory=list)
    distances: list[float] = field(default_factory=list)  # root mean square of each position

    def add(self, ours: Tensor, exact: Tensor, token_ids: Tensor) -> None:
        """Add a window: log probabilities [T, V], those of the decoded weights, and the actual next tokens [T]."""
        near = exact > exact.max(-1, keepdim=True).values - CLIPPED_NATS
        squares = torch.where(near, ours - exact, 0.0).double() ** 2  # [T, V]
        nats = -ours.gather(-1, token_ids[:, None]).double()
        self.nats.append(float(nats.sum()))
        self.paired_nats.append(float((nats * near.gather(-1, token_ids[:, None])).sum()))
        self.squares.append(float(squares.sum()))
        self.num_logprobs.append(int(near.sum()))
        self.distances += (squares.sum(-1) / near.sum(-1)).sqrt().tolist()

    def extend(self, other: "Score") -> None:
        """Append another text's windows."""
        for name in self.__dataclass_fields__:
            getattr(self, name).extend(getattr(other, name))

    @property
    def perplexity(self) -> float:
        return float(np.exp(sum(self.nats) / len(self.distances)))

    @property
    def distance(self) -> float:
        return float((sum(self.squares) / sum(self.num_logprobs)) ** 0.5)

    @property
    def median_distance(self) -> float:
        return float(np.median(self.distances))


class Comparison:
    """Two programs' scores of the same windows."""

    def __init__(self, ours: Score, theirs: Score) -> None:
        self.num_windows = len(ours.nats)
        self._nats = np.array(ours.paired_nats) - np.array(theirs.paired_nats)
        self._squares = [np.array(score.squares) for score in (ours, theirs)]
        self._distances = [np.array(score.distances).reshape(self.num_windows, -1) for score in (ours, theirs)]

    def perplexity_percent(self, windows: Windows) -> float:
        """Return by how many percent our perplexity of these windows is above theirs."""
        positions = len(windows) * self._distances[0].shape[1]
        return float(100 * np.expm1(self._nats[windows].sum() / positions))

    def distance_ratio(self, windows: Windows) -> float:
        ours, theirs = (squares[windows].sum() for squares in self._squares)
        return float((ours / theirs) ** 0.5)

    def median_ratio(self, windows: Windows) -> float:
        ours, theirs = (np.median(distances[windows]) for distances in self._distances)
        return float(ours / theirs)


def run_llama_perplexity(folder: Path, file: Path, text: Path, num_chunks: int) -> tuple[float, SavedLogits]:
    """Return its perplexity as printed, and what it saved."""
    with tempfile.TemporaryDirectory() as directory:
        saved = Path(directory) / "logits"
        command = [folder / "llama-perplexity", "-m", file, "-f", text, "-c", str(CONTEXT_LEN), "-b", str(CONTEXT_LEN)]
        command += ["--chunks", str(num_chunks), "-t", "1", "--save-all-logits", saved]
        for _ in range(ATTEMPTS):
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
            printed = re.search(r"Final estimate: PPL = ([0-9.]+)", done.stdout)
            if printed is not None:
                return float(printed[1]), _read_saved(saved)
        raise SystemExit(f"llama-perplexity prints no estimate:\n{done.stdout[-2000:]}")


def _read_saved(path: Path) -> SavedLogits:
    """Parse "_logits_", int32 context, int32 V, int32 chunks, tokens; then scale, minimum and V uint16 per position."""
    raw = path.read_bytes()
    context_len, vocab_size, num_chunks = np.frombuffer(raw, "<i4", 3, 8)
    assert raw[:8] == b"_logits_" and context_len == CONTEXT_LEN
    token_ids = np.frombuffer(raw, "<i4", num_chunks * CONTEXT_LEN, 20).reshape(num_chunks, CONTEXT_LEN)
    words = (vocab_size + 1) // 2 * 2 + 4
    rows = np.frombuffer(raw, "<u2", offset=20 + token_ids.nbytes).reshape(num_chunks, NUM_SCORED, words)
    scales = np.ascontiguousarray(rows[..., :4]).view("<f4")
    logprobs = rows[..., 4 : 4 + vocab_size] * scales[..., :1] + scales[..., 1:]
    return SavedLogits(torch.tensor(token_ids, dtype=torch.int64), torch.from_numpy(logprobs))


def scores_of(file: Path, saved: SavedLogits) -> dict[str, Score]:
    """Score the decoded weights in float32, llama.cpp and this library in both dtypes."""
    native = NativeOps(NativeLibrary(), threads=1)
    exact = load_network(file, "float32", ReferenceOps())
    networks: dict[str, tuple[Mixtral, KvDtype]] = {
        "bfloat16": (load_network(file, "bfloat16", native), "bfloat16"),
        "float32": (load_network(file, "float32", native), "float32"),
    }
    scores = {name: Score() for name in ("decoded", "llama.cpp", *networks)}
    for token_ids, theirs in zip(saved.token_ids, saved.logprobs, strict=True):
        inputs, following = token_ids.clone(), token_ids[FIRST_SCORED + 1 :]
        inputs[0] = exact.config.bos_token_id or 0
        expected = logprobs_of(exact, "float32", inputs)
        scores["decoded"].add(expected, expected, following)
        scores["llama.cpp"].add(theirs, expected, following)
        for name, (network, dtype) in networks.items():
            scores[name].add(logprobs_of(network, dtype, inputs), expected, following)
    return scores


def load_network(file: Path, dtype: KvDtype, ops: Ops) -> Mixtral:
    config, _ = read_config(file)
    return load_model(file, config, ops, LoadOptions(getattr(torch, dtype), CPU))


def logprobs_of(network: Mixtral, dtype: KvDtype, token_ids: Tensor) -> Tensor:
    """Return log probabilities [NUM_SCORED, V], computed in one step over a pool with one large block."""
    length = len(token_ids)
    batch = ForwardBatch(
        token_ids=token_ids,
        positions=torch.arange(length),
        slot_mapping=torch.arange(length) + length,
        query_start=torch.tensor([0, length], dtype=torch.int32),
        context_len=torch.tensor([length], dtype=torch.int32),
        block_tables=torch.tensor([[1]], dtype=torch.int32),
        logit_rows=torch.arange(FIRST_SCORED, length - 1),
    )
    return network.forward(batch, KvPool(network.config, 2, length, dtype, CPU)).float().log_softmax(-1)


def row(name: str, printed: float, scores: dict[str, Score]) -> str:
    """Format the scores of one file and text as a row of the table."""
    theirs = scores["llama.cpp"]
    compared = {dtype: Comparison(scores[dtype], theirs) for dtype in ("bfloat16", "float32")}
    num_windows = compared["bfloat16"].num_windows
    cells = [name, str(num_windows), f"{scores['decoded'].perplexity:.4f}", f"{printed:.4f}"]
    for dtype, both in compared.items():
        low, high = bootstrap_interval(both.perplexity_percent, num_windows)
        above = 100 * (scores[dtype].perplexity / printed - 1)
        cells.append(f"{scores[dtype].perplexity:.4f} ({above:+.3f} % [{low:+.3f}, {high:+.3f}])")
    cells.append(f"{theirs.distance:.4f}")
    for dtype, both in compared.items():
        ratio = scores[dtype].distance / theirs.distance
        of_median = scores[dtype].median_distance / theirs.median_distance
        low, high = bootstrap_interval(both.distance_ratio, num_windows)
        least, most = bootstrap_interval(both.median_ratio, num_windows)
        median = f"median {of_median:.3f} x [{least:.3f}, {most:.3f}]"
        cells.append(f"{scores[dtype].distance:.4f} ({ratio:.2f} x [{low:.2f}, {high:.2f}], {median})")
    return f"| {' | '.join(cells)} |"


def compare(llama: Path, file: Path, texts: Iterable[Path], num_chunks: int) -> None:
    """Print a row per text, and one for all."""
    together: dict[str, Score] = {}
    printed_nats = 0.0
    names = []
    for text in texts:
        printed, saved = run_llama_perplexity(llama, file, text, num_chunks)
        scores = scores_of(file, saved)
        names.append(text.stem)
        write(row(f"{file.stem}, {text.stem}", printed, scores))
        printed_nats += float(np.log(printed)) * len(scores["llama.cpp"].nats)
        for name, score in scores.items():
            together.setdefault(name, Score()).extend(score)
    if len(names) > 1:
        printed = float(np.exp(printed_nats / len(together["llama.cpp"].nats)))
        write(row(f"{file.stem}, {' and '.join(names)}", printed, together))


def write(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", type=Path, nargs="*", metavar="FILE.gguf")
    parser.add_argument("--llama", type=Path, required=True, metavar="BIN")
    parser.add_argument("--type", action="append", default=[], dest="types", metavar="TYPE", help="such as IQ3_S")
    parser.add_argument("--text", type=Path, action="append", default=[], metavar="FILE")
    parser.add_argument("--chunks", type=int, default=200, help="windows of each text")
    arguments = parser.parse_args()
    header = ["file and text", "windows", "perplexity, decoded", "llama.cpp", "bfloat16", "float32"]
    header += ["distance, llama.cpp", "bfloat16", "float32"]
    write(f"| {' | '.join(header)} |")
    write("|---" * len(header) + "|")
    torch.set_num_threads(1)  # waiting threads cost more than they save while other programs run
    with tempfile.TemporaryDirectory() as directory:
        texts = arguments.text or [Path(directory) / "Python"]
        if not arguments.text:
            wanted = arguments.chunks * CONTEXT_LEN * MAX_CHARACTERS_PER_TOKEN
            texts[0].write_text("\n".join(load_python().held_out)[:wanted])
        made = write_quantized(arguments.llama, Path(directory), arguments.types) if arguments.types else []
        for file in arguments.files + made:
            compare(arguments.llama, file, texts, arguments.chunks)


if __name__ == "__main__":
    main()
