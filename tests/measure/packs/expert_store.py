"""Measure a pack that is larger than memory: tokens per second of 1, 8 and 16 clients, hits, share of the formula.

    python -m tests.measure.packs.expert_store DIR [--expert-memory SIZE|auto] [--clients 1,8,16]
        [--steps N] [--warm-up N]

DIR is a pack, such as one of `python -m tests.measure.packs.pack_start make`. Random gates choose all experts equally
often, the worst case. First the rates: direct reads of the pack with as many threads as the store has, and reads of
memory with the kernels' threads. Then one engine in this process: for each number of clients so many requests decode;
warm-up steps fill the places of the experts, and the steps after them are timed. `formula_s` is the time of a step by
decision 74, max(bytes that it needs / memory, bytes that it reads / disk), with the bytes of the timed steps; `share`
is formula_s / step_s. The disk of a virtual machine may read a second time what its host still has: the store reads
the same experts again and again, so the rate is that of reading a sample again, behind the timed steps. Nothing is
asserted. Run it on an idle machine; it drops the pack from the page cache.
"""

import argparse
import json
import random
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from engine.capacity.machine.disk_speed import disk_rate
from engine.capacity.machine.host_resources import num_cores
from engine.types import ExpertReads
from model.checkpoint.pack.experts import expert_tensors
from model.checkpoint.pack.header import WEIGHTS_NAME, read_header
from model.ops.huge_pages import empty
from model.ops.native.library import NativeLibrary
from model.ops.native.ops import NativeOps
from server.settings.value_types import parse_size
from smoe import LocalEngine, SamplingParams
from tests.measure.gguf.load import drop

DISK_SAMPLE_BYTES = 4 << 30
MEMORY_SAMPLE_BYTES = 1 << 30
PROMPT_TOKENS = 8


def memory_rate() -> float:
    """Return the bytes per second at which the kernels' threads read memory: the best of five."""
    ops, buffer = NativeOps(NativeLibrary(), num_cores()), empty(MEMORY_SAMPLE_BYTES, torch.uint8)
    buffer.fill_(1)
    best_s = float("inf")
    for _ in range(5):
        start = time.perf_counter()
        ops.read_all(buffer)
        best_s = min(best_s, time.perf_counter() - start)
    return MEMORY_SAMPLE_BYTES / best_s


class Decoding:
    """So many requests that decode in one engine."""

    def __init__(self, engine: LocalEngine, num_clients: int, num_tokens: int) -> None:
        self._engine, self._num_clients = engine, num_clients
        rng, size = random.Random(num_clients), engine._engine.loaded.config.vocab_size
        params = SamplingParams(max_tokens=num_tokens, temperature=1.0, ignore_eos=True)
        for _ in range(num_clients):
            engine.add([rng.randrange(size) for _ in range(PROMPT_TOKENS)], params)

    def steps(self, count: int) -> tuple[float, list[ExpertReads]]:
        """Compute so many steps in which all requests decode; return their seconds, and what each read."""
        seconds, reads = 0.0, []
        while len(reads) < count:
            stats = self._engine._engine.step().stats
            if stats.num_generated_tokens == self._num_clients and not stats.num_prefill_tokens:
                assert stats.expert_reads is not None
                reads.append(stats.expert_reads)
                seconds += stats.step_s
        return seconds, reads

    def end(self) -> None:
        """Compute the rest."""
        while self._engine._engine.has_work():
            self._engine._engine.step()


def disk_rate_again(directory: Path) -> float:
    """Return the bytes per second of direct reads that were just done before."""
    disk_rate(directory, DISK_SAMPLE_BYTES, limit_s=60)
    return disk_rate(directory, DISK_SAMPLE_BYTES, limit_s=60)


def measure(engine: LocalEngine, num_clients: int, warm_up: int, count: int, memory: float, directory: Path) -> None:
    """Print the figures of one number of clients."""
    experts = engine._engine.loaded.experts
    assert experts is not None
    decoding = Decoding(engine, num_clients, warm_up + count + 2)
    decoding.steps(warm_up)
    store = engine._engine.loaded.expert_store
    assert store is not None
    before = store.counts()
    seconds, reads = decoding.steps(count)
    after = store.counts()
    decoding.end()
    disk = disk_rate_again(directory)
    hits, misses = sum(one.num_hits for one in reads), sum(one.num_misses for one in reads)
    needed_bytes = count * experts.dense_bytes + (hits + misses) * experts.slot_bytes
    formula_s = max(needed_bytes / memory, sum(one.num_bytes for one in reads) / disk) / count
    show(
        clients=num_clients,
        tokens_per_s=num_clients * count / seconds,
        step_s=seconds / count,
        hit_rate=hits / max(1, hits + misses),
        experts_per_layer=(hits + misses) / count / engine._engine.loaded.config.num_layers,
        read_gb_per_s=sum(one.num_bytes for one in reads) / seconds / 1e9,
        foreseen=(after.foreseen - before.foreseen) / max(1, misses),
        unneeded_share=(after.unneeded_bytes - before.unneeded_bytes) / max(1, sum(one.num_bytes for one in reads)),
        waited=sum(one.waited_s for one in reads) / seconds,
        disk_gb_per_s=disk / 1e9,
        formula_s=formula_s,
        share=formula_s * count / seconds,
    )


def show(**figures: object) -> None:
    """Print one line of figures."""
    sys.stdout.write(json.dumps({k: round(v, 4) if isinstance(v, float) else v for k, v in figures.items()}) + "\n")
    sys.stdout.flush()


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure the rates, then each number of clients."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--expert-memory", default="auto")
    parser.add_argument("--clients", default="1,8,16")
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--warm-up", type=int, default=12)
    given = parser.parse_args(arguments)
    directory = given.directory.absolute()
    drop(directory / WEIGHTS_NAME)
    first, memory = disk_rate(directory, DISK_SAMPLE_BYTES, limit_s=60), memory_rate()
    expert_bytes = expert_tensors(read_header(directory)).largest_bytes
    show(first_disk_gb_per_s=first / 1e9, memory_gb_per_s=memory / 1e9, expert_bytes=expert_bytes)
    size = given.expert_memory if given.expert_memory == "auto" else parse_size(given.expert_memory)
    start = time.perf_counter()
    settings = {"kv_cache_memory_bytes": 256 << 20, "max_num_batched_tokens": 128, "max_model_len": 256}
    engine = LocalEngine(directory, expert_memory=size, speculation="off", **settings)
    loaded = engine._engine.loaded.experts
    assert loaded is not None
    show(start_s=time.perf_counter() - start, slots=loaded.num_slots, experts=loaded.num_experts)
    for num_clients in map(int, given.clients.split(",")):
        measure(engine, num_clients, given.warm_up, given.steps, memory, directory)


if __name__ == "__main__":
    main()
