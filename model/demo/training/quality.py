"""Measure the quality of quantized weights: perplexity, and how close the predictions are to those of float32.

    python -m model.demo.training.quality [CHECKPOINT] [--text FILE ...]

Each text is cut into separate contexts that start with <s>; all their positions are scored. Without --text it uses the
held-out texts of the bundled model, which need the same Debian packages as training. KL is the mean over positions of
KL(float32 || this), in nats; top-1 is the share of positions with the same most likely token. Prints a Markdown table.
"""

import argparse
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import sentencepiece
import torch
import torch.nn.functional as F
from torch import Tensor

from model.checkpoint.config_file import load_config
from model.demo.training.corpus import load_domains
from model.forward_batch import ForwardBatch
from model.kv_format import KvDtype
from model.kv_pool import KvPool
from model.loader import LoadOptions, load_model
from model.mixtral import Mixtral
from model.ops.native.library import NativeLibrary
from model.ops.native.ops import NativeOps
from model.ops.quantization import Quantization

CPU = torch.device("cpu")
CONTEXT_LEN = 512
CONTEXTS_PER_TEXT = 20  # evenly spaced over the text

Variant = tuple[KvDtype, Quantization]
EXACT: Variant = ("float32", "none")
VARIANTS: list[Variant] = [
    ("bfloat16", "none"),
    ("float32", "int8"),
    ("bfloat16", "int8"),
    ("float32", "int4"),
    ("bfloat16", "int4"),
]


@dataclass
class Score:
    """Sums of the quality measures over positions."""

    nats: float = 0.0
    kl: float = 0.0
    num_same: int = 0
    num_positions: int = 0

    def add(self, ours: Tensor, exact: Tensor, token_ids: Tensor) -> None:
        """Add positions: log probabilities [T, V] of this variant and of float32, and the actual next tokens [T]."""
        self.nats += float(F.nll_loss(ours, token_ids, reduction="sum"))
        self.kl += float(F.kl_div(ours, exact, reduction="sum", log_target=True))
        self.num_same += int((ours.argmax(-1) == exact.argmax(-1)).sum())
        self.num_positions += len(token_ids)

    @property
    def perplexity(self) -> float:
        return float(torch.tensor(self.nats / self.num_positions).exp())


def measure(checkpoint: Path, texts: list[str], variants: Sequence[Variant] = VARIANTS) -> dict[Variant, Score]:
    """Return the scores of EXACT and of each variant."""
    tokenizer = sentencepiece.SentencePieceProcessor(model_file=str(checkpoint / "tokenizer.model"))
    networks = {variant: _load(checkpoint, *variant) for variant in [EXACT, *variants]}
    scores = {variant: Score() for variant in networks}
    for ids in _contexts(tokenizer, texts):
        exact = _logprobs(networks[EXACT], "float32", ids)
        for variant, network in networks.items():
            ours = exact if variant == EXACT else _logprobs(network, variant[0], ids)
            scores[variant].add(ours[:-1], exact[:-1], torch.tensor(ids[1:]))
    return scores


def _load(checkpoint: Path, dtype: KvDtype, quantization: Quantization) -> Mixtral:
    config, _ = load_config(checkpoint)
    ops = NativeOps(NativeLibrary(), len(os.sched_getaffinity(0)), None, quantization)
    return load_model(checkpoint, config, ops, LoadOptions(getattr(torch, dtype), CPU))


def _contexts(tokenizer: sentencepiece.SentencePieceProcessor, texts: list[str]) -> Iterator[list[int]]:
    for text in texts:
        ids = tokenizer.encode(text)
        starts = range(0, len(ids), CONTEXT_LEN)
        for start in starts[:: max(1, len(starts) // CONTEXTS_PER_TEXT)]:
            yield [tokenizer.bos_id(), *ids[start : start + CONTEXT_LEN]]


def _logprobs(network: Mixtral, dtype: KvDtype, ids: list[int]) -> Tensor:
    """Return log probabilities [T, V] of one sequence, computed in one step over a pool with one large block."""
    length = len(ids)
    pool = KvPool(network.config, 2, length, dtype, CPU)
    batch = ForwardBatch(
        token_ids=torch.tensor(ids),
        positions=torch.arange(length),
        slot_mapping=torch.arange(length) + length,
        query_start=torch.tensor([0, length], dtype=torch.int32),
        context_len=torch.tensor([length], dtype=torch.int32),
        block_tables=torch.tensor([[1]], dtype=torch.int32),
        logit_rows=torch.arange(length),
    )
    return network.forward(batch, pool).log_softmax(-1)


def table(scores: dict[Variant, Score]) -> str:
    """Format the scores as a Markdown table."""
    base = scores[EXACT].perplexity
    lines = [
        f"{scores[EXACT].num_positions:,} positions",
        "",
        "| activations | weights | perplexity | against float32 | top-1 | KL |",
        "|---|---|---|---|---|---|",
    ]
    for (dtype, quantization), score in scores.items():
        weights = dtype if quantization == "none" else quantization
        change = f"{100 * (score.perplexity / base - 1):+.2f} %"
        same, kl = score.num_same / score.num_positions, score.kl / score.num_positions
        lines.append(f"| {dtype} | {weights} | {score.perplexity:.3f} | {change} | {same:.1%} | {kl:.5f} |")
    return "\n".join(lines)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path, nargs="?", default=Path("model/demo"))
    parser.add_argument("--text", type=Path, action="append", default=[], metavar="FILE")
    arguments = parser.parse_args()
    files = [file.read_text() for file in arguments.text]
    print(table(measure(arguments.checkpoint, files or ["\n".join(d.held_out) for d in load_domains()])))
