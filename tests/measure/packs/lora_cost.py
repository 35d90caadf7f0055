"""python -m tests.measure.packs.lora_cost [--preset bench-400m] [--layers N] [--adapters 16] [--rank 16]
[--matrices all|attention] [--quantization none|int8|int4] [--threads N] [--rounds 5] [--steps 20] [--no-prefill]
[--cpu-time]

Decoding with an adapter for each of 16 requests against the same requests without: a step of each, in turns, over
random weights. A share of 1.10 is 10 % slower. Prints prefills of 512 tokens too, with one adapter.

Shares are those of the medians over all rounds and, for a machine that others use too, those of the least, there best
with `--threads 1 --cpu-time`: the seconds in which the process ran. Beside them stands what the terms add to the bytes
that a step reads: where memory is the limit, no step can cost less.
`--preset mixtral-8x7b --layers 2` has the width of the real model, and a vocabulary as small as its few layers need.
"""

import argparse
import random
import sys
import time
from dataclasses import replace
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import torch

from engine.config import EngineConfig
from engine.engine import Engine
from engine.startup.loading import load_random
from engine.types import Request, SamplingParams
from model.bench.shapes import PRESETS
from model.config import ModelConfig
from model.lora.adapter import NUM_ATTENTION_TERMS, Adapter
from model.lora.load import load_adapter
from model.ops.huge_pages import empty
from tests.support.checkpoints.adapters import random_tensors, save_adapter

WARM_UP, PROMPT, PREFILL = 3, 32, 512
FEW_LAYERS_VOCAB = 2048  # 32,000 rows of the head would be a large part of a step of two layers


def random_adapter(config: ModelConfig, rank: int, matrices: str, seed: int) -> Adapter:
    """Save an adapter in bfloat16, with terms of all matrices of every layer or of attention's only, and load it."""
    tensors = random_tensors(config, rank, seed, torch.bfloat16)
    if matrices == "attention":
        tensors = {name: tensor for name, tensor in tensors.items() if ".self_attn." in name}
    with TemporaryDirectory() as folder:
        return load_adapter(save_adapter(Path(folder), tensors), config, allocate=empty)


class Bench:
    """One engine, and the names of its adapters."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.model = shape_of(options)
        self._steps = options.steps
        self._now = time.process_time if options.cpu_time else time.perf_counter
        config = EngineConfig(
            model="",
            backend="native",
            quantization=options.quantization,
            threads=options.threads,
            enable_prefix_caching=False,
            speculation="off",
            max_model_len=1024,
            max_num_batched_tokens=2 * PREFILL,
        )
        self.engine = Engine(config, load_random(config, self.model))
        self.digests = []
        for seed in range(options.adapters):
            adapter = random_adapter(self.model, options.rank, options.matrices, seed)
            self.engine.loaded.runner.adapters.add(adapter.digest, adapter)
            self.digests.append(adapter.digest)
        self.adapter = adapter
        self._rng = random.Random(0)
        self._last_id = 0

    def _add(self, length: int, num_tokens: int, adapter: str) -> int:
        self._last_id += 1
        ids = [self._rng.randrange(3, 1000) for _ in range(length)]
        params = SamplingParams(max_tokens=num_tokens, temperature=0.0, ignore_eos=True)
        self.engine.add(Request(self._last_id, ids, params, adapter=adapter))
        return self._last_id

    @property
    def added_bytes(self) -> float:
        """Share of the bytes of a decode step's weights that its terms have."""
        experts, k = self.model.num_experts, self.model.experts_per_token
        layers = self.adapter.layers
        dense = sum(term.num_bytes for layer in layers for term in layer[:NUM_ATTENTION_TERMS] if term)
        sparse = self.adapter.num_bytes - dense
        of_terms = len(self.digests) * (dense + sparse * k / experts if experts else self.adapter.num_bytes)
        weights = self.engine.loaded.runner.model.weights
        embedding = weights.embedding.nbytes  # of which a step reads a few rows
        return of_terms / (self.engine.loaded.weight_bytes - embedding)

    def decode_s(self, *, with_adapters: bool) -> list[float]:
        """Return the durations of steps in which each request decodes."""
        ids = [self._add(PROMPT, 64 + self._steps, digest if with_adapters else "") for digest in self.digests]
        while self.engine.step().stats.num_prefill_tokens:
            pass
        seconds = []
        for _ in range(WARM_UP + self._steps):
            start = self._now()
            self.engine.step()
            seconds.append(self._now() - start)
        for request_id in ids:
            self.engine.abort(request_id)
        return seconds[WARM_UP:]

    def prefill_s(self, *, with_adapters: bool) -> list[float]:
        """Return the duration of one prompt."""
        self._add(PREFILL, 1, self.digests[0] if with_adapters else "")
        start = self._now()
        while self.engine.has_work():
            self.engine.step()
        return [self._now() - start]


def shape_of(options: argparse.Namespace) -> ModelConfig:
    """Return the preset, or a model of its width with a few layers."""
    preset = PRESETS[options.preset]
    if options.layers is None:
        return preset
    return replace(preset, num_layers=options.layers, vocab_size=FEW_LAYERS_VOCAB)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--preset", choices=PRESETS, default="bench-400m")
    parser.add_argument("--layers", type=int)
    parser.add_argument("--adapters", type=int, default=16)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--matrices", choices=["all", "attention"], default="all")
    parser.add_argument("--quantization", choices=["none", "lossless", "int8", "int4"], default="none")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--no-prefill", action="store_true")
    parser.add_argument("--cpu-time", action="store_true")
    options = parser.parse_args()
    bench = Bench(options)
    kind = f"{options.preset} {options.quantization}, {options.adapters} adapters of rank {options.rank}"
    size = f"{bench.adapter.num_bytes / 1e6:.1f} MB each, {bench.added_bytes:.1%} more bytes in a decode step"
    sys.stdout.write(f"{kind} ({options.matrices}), {size}\n")
    kinds = [("decode step", bench.decode_s), (f"prefill of {PREFILL}", bench.prefill_s)]
    for name, measure in kinds[: 1 if options.no_prefill else 2]:
        times: dict[bool, list[float]] = {False: [], True: []}
        for _ in range(options.rounds):
            for with_adapters in (False, True):
                times[with_adapters] += measure(with_adapters=with_adapters)
        for of, statistic in (("medians", median), ("least", min)):
            without, with_them = statistic(times[False]) * 1e3, statistic(times[True]) * 1e3
            share = with_them / without
            sys.stdout.write(f"{name}, {of}: {without:.2f} ms without, {with_them:.2f} ms with, share {share:.3f}\n")


if __name__ == "__main__":
    main()
