"""python -m tests.measure.scale.rank_fixed_cost [--rounds N] [--steps N]

Measure what two ranks of one host add to a step apart from its work: the packet to rank 1, 33 gathers, and waiting for
each other. The network has 8 layers, as bench-400m, but matrices so small that a step is little more than its calls:
one decoding row on one rank of one thread, and on two, in turns. Two ranks share what one computes, so the fixed part
is at least the difference of the two, and at most this and half a step of one rank. For a machine without other load
and with two cores; a minute.
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from engine.config import EngineConfig
from engine.distributed.packets import encode_step
from engine.engine import Engine
from model.forward_batch import ForwardBatch
from model.mixtral import uniform_routing
from tests.support.checkpoints.mixtral import Shape, save_random_checkpoint
from tests.support.kernels.paged import CPU, Running, make_batch

SHAPE = Shape(dim=128, hidden_dim=128, num_layers=8, num_kv_heads=2, vocab_size=128)
BLOCK_SIZE, POSITION = 16, 20
WARM_UP = 200  # steps that are not counted


def median_s(work: Callable[[], object], count: int) -> float:
    """Return the median seconds of a call."""
    times = []
    for _ in range(count + WARM_UP):
        begun_s = time.perf_counter()
        work()
        times.append(time.perf_counter() - begun_s)
    return statistics.median(times[WARM_UP:])


def decoding_row(engine: Engine) -> ForwardBatch:
    """Return a step of one row."""
    run = Running(list(range(POSITION + 1)), [1, 2], POSITION)
    return replace(make_batch([(run, 1)], BLOCK_SIZE), routing=uniform_routing(engine.loaded.config, 1, CPU))


def step_s(folder: str, num_ranks: int, count: int) -> tuple[float, float]:
    """Return the median seconds of a step, and of making its packet."""
    config = EngineConfig(
        model=folder,
        dtype="bfloat16",
        threads=1,
        block_size=BLOCK_SIZE,
        num_kv_blocks=8,
        max_num_seqs=1,
        max_model_len=64,
        tensor_parallel_size=num_ranks,
    )
    engine = Engine.load(config)
    batch, model, pool = decoding_row(engine), engine.loaded.runner.model, engine.loaded.kv_pool
    times = median_s(lambda: model.forward(batch, pool), count), median_s(lambda: encode_step(batch), count)
    if engine.loaded.ranks is not None:
        engine.loaded.ranks.close()
    return times


def say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(prog="python -m tests.measure.scale.rank_fixed_cost")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=3000)
    options = parser.parse_args()
    least, most = [], []
    with tempfile.TemporaryDirectory() as folder:
        save_random_checkpoint(SHAPE, Path(folder))
        for _ in range(options.rounds):
            (one_s, _), (two_s, packet_s) = (step_s(folder, size, options.steps) for size in (1, 2))
            least.append(two_s - one_s)
            most.append(two_s - one_s / 2)
            say(f"a step of one rank {one_s * 1e6:.0f} us, of two {two_s * 1e6:.0f} us; packet {packet_s * 1e6:.0f} us")
    say(f"fixed part: {statistics.median(least) * 1e6:.0f} to {statistics.median(most) * 1e6:.0f} us a step (medians)")


if __name__ == "__main__":
    main()
