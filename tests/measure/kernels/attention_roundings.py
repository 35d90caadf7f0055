"""Measure what each rounding in attention costs the quality of a GGUF file.

    python -m tests.measure.kernels.attention_roundings --llama BIN --text FILE [--chunks N] FILE.gguf ...

BIN is the folder of llama-perplexity. The network of a file is computed in float32 over its own blocks, and one thing
at a time is rounded. Prints, per rounding, the distance of log probabilities from those of the decoded weights as a
multiple of llama.cpp's (root mean square; that of the nearest 90 % of the positions, which leaves out tokens that are
sent to other experts; median), and perplexity against llama.cpp's. tests/measure/gguf/quality.py has the rule.
"""

import argparse
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from model.ops.native.library import NativeLibrary
from model.ops.native.ops import NativeMetadata, NativeOps
from model.ops.reference.ops import ReferenceOps
from tests.measure.gguf.quality import (
    FIRST_SCORED,
    SavedLogits,
    Score,
    load_network,
    logprobs_of,
    run_llama_perplexity,
    write,
)

NEAREST = 0.9  # share of positions


@dataclass(frozen=True)
class Roundings:
    """The dtype to which each thing is rounded; float32 rounds nothing."""

    embedding: torch.dtype = torch.float32
    queries: torch.dtype = torch.float32
    keys: torch.dtype = torch.float32
    values: torch.dtype = torch.float32
    weights: torch.dtype = torch.float32  # before the product with values
    output: torch.dtype = torch.float32


BF16, F16 = torch.bfloat16, torch.float16
BOTH_CACHES = Roundings(keys=BF16, values=BF16)
ATTENTION = replace(BOTH_CACHES, queries=BF16, weights=BF16, output=BF16)
VARIANTS = {
    "nothing": Roundings(),
    "embedding": Roundings(embedding=BF16),
    "queries": Roundings(queries=BF16),
    "keys": Roundings(keys=BF16),
    "values": Roundings(values=BF16),
    "weights": Roundings(weights=BF16),
    "output": Roundings(output=BF16),
    "all of attention": ATTENTION,
    "all of attention and embedding": replace(ATTENTION, embedding=BF16),
    "keys and values": BOTH_CACHES,
    "keys, values and embedding": replace(BOTH_CACHES, embedding=BF16),
    "keys and values to float16": Roundings(keys=F16, values=F16),
    "the same, and embedding": Roundings(keys=F16, values=F16, embedding=BF16),
}


class RoundingOps(NativeOps):
    """Native ops over float32 caches with attention in plain torch, for one sequence that is computed in one step."""

    roundings = Roundings()

    def embed(self, token_ids: Tensor, table: Tensor) -> Tensor:
        return _rounded(super().embed(token_ids, table), self.roundings.embedding)  # [T, D]

    def rope_and_store_kv(self, qkv: Tensor, k_cache: Tensor, v_cache: Tensor, metadata: NativeMetadata) -> Tensor:
        q = super().rope_and_store_kv(qkv, k_cache, v_cache, metadata)  # [T, H, K]
        slots = metadata.batch.slot_mapping
        for cache, dtype in ((k_cache, self.roundings.keys), (v_cache, self.roundings.values)):
            rows = cache.flatten(0, 1)
            rows[slots] = _rounded(rows[slots], dtype)
        return _rounded(q, self.roundings.queries)

    def attention(
        self, q: Tensor, k_cache: Tensor, v_cache: Tensor, metadata: NativeMetadata, out_dtype: torch.dtype
    ) -> Tensor:
        assert out_dtype == torch.float32
        queries_per_head = q.shape[1] // k_cache.shape[2]
        k, v = (  # [H, T, K] each
            cache.flatten(0, 1)[metadata.batch.slot_mapping].repeat_interleave(queries_per_head, 1).transpose(0, 1)
            for cache in (k_cache, v_cache)
        )
        scores = q.transpose(0, 1) @ k.mT * q.shape[2] ** -0.5  # [H, T, T]
        seen = torch.ones(scores.shape[1:], dtype=torch.bool).tril()
        scores = scores.masked_fill(~seen, float("-inf"))
        weights = _rounded((scores - scores.amax(-1, keepdim=True)).exp(), self.roundings.weights)
        out = weights @ v / weights.sum(-1, keepdim=True)
        return _rounded(out, self.roundings.output).transpose(0, 1).flatten(1)  # [T, H * K]


def _rounded(x: Tensor, dtype: torch.dtype) -> Tensor:
    return x.to(dtype).float()


def scores_of(file: Path, saved: SavedLogits) -> tuple[Score, dict[str, Score]]:
    """Score llama.cpp and every variant."""
    ops = RoundingOps(NativeLibrary(), threads=1)
    network, exact = load_network(file, "float32", ops), load_network(file, "float32", ReferenceOps())
    theirs, ours = Score(), {name: Score() for name in VARIANTS}
    for token_ids, their_logprobs in zip(saved.token_ids, saved.logprobs, strict=True):
        inputs, following = token_ids.clone(), token_ids[FIRST_SCORED + 1 :]
        inputs[0] = exact.config.bos_token_id or 0
        expected = logprobs_of(exact, "float32", inputs)
        theirs.add(their_logprobs, expected, following)
        for name, score in ours.items():
            ops.roundings = VARIANTS[name]
            score.add(logprobs_of(network, "float32", inputs), expected, following)
    return theirs, ours


def nearest_distance(score: Score) -> float:
    """Root mean square over the positions that are nearest."""
    nearest = torch.tensor(score.distances).sort().values[: int(NEAREST * len(score.distances))]
    return float(nearest.square().mean().sqrt())


def row(name: str, score: Score, theirs: Score, printed: float) -> str:
    ratios = (
        score.distance / theirs.distance,
        nearest_distance(score) / nearest_distance(theirs),
        score.median_distance / theirs.median_distance,
    )
    cells = [name, *(f"{ratio:.3f}" for ratio in ratios), f"{100 * (score.perplexity / printed - 1):+.3f} %"]
    return f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", type=Path, nargs="+", metavar="FILE.gguf")
    parser.add_argument("--llama", type=Path, required=True, metavar="BIN")
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--chunks", type=int, default=100)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for file in arguments.files:
        printed, saved = run_llama_perplexity(arguments.llama, file, arguments.text, arguments.chunks)
        theirs, ours = scores_of(file, saved)
        write(f"| {file.stem}: rounded to bfloat16 | root mean square | nearest 90 % | median | perplexity |")
        write("|---|---|---|---|---|")
        for name, score in ours.items():
            write(row(name, score, theirs, printed))


if __name__ == "__main__":
    main()
