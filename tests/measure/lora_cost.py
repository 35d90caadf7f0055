"""python -m tests.measure.lora_cost [--preset bench-400m] [--adapters 16] [--rank 16] [--matrices all|attention]
[--quantization none|int8|int4] [--threads N] [--rounds 5]

Decoding with an adapter for each of 16 requests against the same requests without: the median step of each, in turns,
over random weights. A share of 1.10 is 10 % slower. Prints prefills of 512 tokens too, with one adapter.
"""

import argparse
import random
import sys
import time
from statistics import median

import torch

from engine.config import EngineConfig
from engine.engine import Engine
from engine.startup.loading import load_random
from engine.types import Request, SamplingParams
from model.bench.shapes import PRESETS
from model.checkpoint.adapter.tensors import target_matrices
from model.config import ModelConfig
from model.lora.adapter import NUM_ATTENTION_TERMS, NUM_EXPERT_TERMS, Adapter, LowRank

STEPS, WARM_UP, PROMPT, PREFILL = 20, 3, 32, 512


def random_adapter(config: ModelConfig, rank: int, matrices: str, seed: int) -> Adapter:
    """Make an adapter in bfloat16, with terms of all matrices of every layer or of attention's only."""
    generator = torch.Generator().manual_seed(seed)
    layers = []
    for _ in range(config.num_layers):
        terms: list[LowRank | None] = [None] * (NUM_ATTENTION_TERMS + NUM_EXPERT_TERMS * max(1, config.num_experts))
        for target in target_matrices(config).values():
            if matrices == "all" or target.index < NUM_ATTENTION_TERMS:
                a = torch.randn(rank, target.num_inputs, generator=generator) * target.num_inputs**-0.5
                b = torch.randn(target.num_outputs, rank, generator=generator) * 0.01
                terms[target.index] = LowRank.packed(a.bfloat16(), b.bfloat16(), 1.0, target.first_output)
        layers.append(tuple(terms))
    return Adapter(f"adapter {seed}", tuple(layers))


class Bench:
    """One engine, and the names of its adapters."""

    def __init__(self, options: argparse.Namespace) -> None:
        model = PRESETS[options.preset]
        config = EngineConfig(
            model="",
            backend="native",
            quantization=options.quantization,
            threads=options.threads,
            enable_prefix_caching=False,
            max_model_len=1024,
            max_num_batched_tokens=2 * PREFILL,
        )
        self.engine = Engine(config, load_random(config, model))
        self.digests = []
        for seed in range(options.adapters):
            adapter = random_adapter(model, options.rank, options.matrices, seed)
            self.engine.loaded.runner.adapters.add(adapter.digest, adapter)
            self.digests.append(adapter.digest)
        self.adapter_bytes = adapter.num_bytes
        self._rng = random.Random(0)
        self._last_id = 0

    def _add(self, length: int, num_tokens: int, adapter: str) -> int:
        self._last_id += 1
        ids = [self._rng.randrange(3, 1000) for _ in range(length)]
        params = SamplingParams(max_tokens=num_tokens, temperature=0.0, ignore_eos=True)
        self.engine.add(Request(self._last_id, ids, params, adapter=adapter))
        return self._last_id

    def decode_s(self, *, with_adapters: bool) -> float:
        """Return the median duration of a step in which each request decodes."""
        ids = [self._add(PROMPT, 64 + STEPS, digest if with_adapters else "") for digest in self.digests]
        while self.engine.step().stats.num_prefill_tokens:
            pass
        seconds = []
        for _ in range(WARM_UP + STEPS):
            start = time.perf_counter()
            self.engine.step()
            seconds.append(time.perf_counter() - start)
        for request_id in ids:
            self.engine.abort(request_id)
        return median(seconds[WARM_UP:])

    def prefill_s(self, *, with_adapters: bool) -> float:
        """Return the duration of one prompt."""
        self._add(PREFILL, 1, self.digests[0] if with_adapters else "")
        start = time.perf_counter()
        while self.engine.has_work():
            self.engine.step()
        return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--preset", choices=PRESETS, default="bench-400m")
    parser.add_argument("--adapters", type=int, default=16)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--matrices", choices=["all", "attention"], default="all")
    parser.add_argument("--quantization", choices=["none", "int8", "int4"], default="none")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    bench = Bench(options)
    kind = f"{options.preset} {options.quantization}, {options.adapters} adapters of rank {options.rank}"
    sys.stdout.write(f"{kind} ({options.matrices}), {bench.adapter_bytes / 1e6:.1f} MB each\n")
    for name, measure in (("decode step", bench.decode_s), (f"prefill of {PREFILL}", bench.prefill_s)):
        times: dict[bool, list[float]] = {False: [], True: []}
        for _ in range(options.rounds):
            for with_adapters in (False, True):
                times[with_adapters].append(measure(with_adapters=with_adapters))
        without, with_them = median(times[False]), median(times[True])
        sys.stdout.write(
            f"{name}: {without * 1e3:.1f} ms without, {with_them * 1e3:.1f} ms with, share {with_them / without:.3f}\n"
        )


if __name__ == "__main__":
    main()
