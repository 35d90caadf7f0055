"""Compare the quality of GGUF files here and in llama.cpp.

    python -m tests.measure.gguf_quality --llama BIN [--text FILE] [--chunks N] FILE.gguf ...

BIN is the folder of llama-perplexity. Without --text it uses the Python files that the bundled model was not trained
on. Prints, per file, the perplexity of the same text by the same rule (windows of 256 tokens that start with <s>, the
second half counts), and the distance of log probabilities from those of the decoded weights in float32: their root
mean square, which the few tokens decide that are sent to other experts, and the median over positions of each
position's. llama-perplexity writes log probabilities in steps of 0.0002; both sides leave out those near its lower
limit.
"""

import argparse
import re
import subprocess
import sys
import tempfile
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
from model.loader import load_model
from model.mixtral import Mixtral
from model.ops.interface import Ops
from model.ops.native.library import NativeLibrary
from model.ops.native.ops import NativeOps
from model.ops.reference.ops import ReferenceOps

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
    """Sums over scored positions."""

    nats: float = 0.0
    num_positions: int = 0
    squares: float = 0.0
    num_logprobs: int = 0
    distances: list[float] = field(default_factory=list)  # root mean square of each position

    def add(self, ours: Tensor, exact: Tensor, token_ids: Tensor) -> None:
        """Add log probabilities [T, V], those of the decoded weights, and the actual next tokens [T]."""
        near = exact > exact.max(-1, keepdim=True).values - CLIPPED_NATS
        squares = torch.where(near, ours - exact, 0.0).double() ** 2  # [T, V]
        self.nats -= float(ours.gather(-1, token_ids[:, None]).double().sum())
        self.num_positions += len(token_ids)
        self.squares += float(squares.sum())
        self.num_logprobs += int(near.sum())
        self.distances += (squares.sum(-1) / near.sum(-1)).sqrt().tolist()

    @property
    def perplexity(self) -> float:
        return float(np.exp(self.nats / self.num_positions))

    @property
    def distance(self) -> float:
        return float((self.squares / self.num_logprobs) ** 0.5)

    @property
    def median_distance(self) -> float:
        return float(np.median(self.distances))


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
    return load_model(file, config, getattr(torch, dtype), CPU, ops, lambda done, total: None)


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


def row(file: Path, printed: float, scores: dict[str, Score]) -> str:
    """Format one file's scores as a row of the table."""
    theirs = scores["llama.cpp"]
    cells = [file.stem, f"{scores['decoded'].perplexity:.4f}", f"{printed:.4f}"]
    for name in ("bfloat16", "float32"):
        cells.append(f"{scores[name].perplexity:.4f} ({100 * (scores[name].perplexity / printed - 1):+.3f} %)")
    cells.append(f"{theirs.distance:.4f}")
    for name in ("bfloat16", "float32"):
        ratio = scores[name].distance / theirs.distance
        of_median = scores[name].median_distance / theirs.median_distance
        cells.append(f"{scores[name].distance:.4f} ({ratio:.2f} x, median {of_median:.2f} x)")
    return f"| {' | '.join(cells)} |"


def write(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", type=Path, nargs="+", metavar="FILE.gguf")
    parser.add_argument("--llama", type=Path, required=True, metavar="BIN")
    parser.add_argument("--text", type=Path)
    parser.add_argument("--chunks", type=int, default=200)
    arguments = parser.parse_args()
    header = ["file", "perplexity, decoded", "llama.cpp", "bfloat16", "float32"]
    header += ["distance, llama.cpp", "bfloat16", "float32"]
    write(f"| {' | '.join(header)} |")
    write("|---" * len(header) + "|")
    torch.set_num_threads(1)  # waiting threads cost more than they save while other programs run
    with tempfile.TemporaryDirectory() as directory:
        text = arguments.text or Path(directory) / "text"
        if arguments.text is None:
            wanted = arguments.chunks * CONTEXT_LEN * MAX_CHARACTERS_PER_TOKEN
            text.write_text("\n".join(load_python().held_out)[:wanted])
        for file in arguments.files:
            printed, saved = run_llama_perplexity(arguments.llama, file, text, arguments.chunks)
            write(row(file, printed, scores_of(file, saved)))


if __name__ == "__main__":
    main()
