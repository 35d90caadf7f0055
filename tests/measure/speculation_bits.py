"""Compare requests with drafts to the same requests alone, bit by bit, for every dtype and quantization.

python -m tests.measure.speculation_bits [--count REQUESTS] [--isa ISA] [--seed N]

Prints a line for each numerics: compared requests, verified and accepted drafted tokens, preemptions. Ends with an
AssertionError at the first difference. 1,000 requests of each take about an hour on two cores.
"""

import argparse
import random
import sys
import tempfile
from pathlib import Path

import torch

from tests.engine.test_same_bits import DIMS, ISAS, NUMERICS
from tests.support.checkpoints import Shape, save_random_checkpoint
from tests.support.drafted_runs import compare, random_loads, random_work, serve_alone

SHAPES = {"full": Shape(**DIMS, seed=1), "window": Shape(**DIMS, window=48, num_kv_heads=1, seed=2)}
WORK = 50  # requests that are served together


def compare_numerics(name: str, count: int, isa: str, seed: int) -> None:
    """Compare at least `count` requests, half of them with a window, and print what happened."""
    dtype, kv_cache_dtype, quantization = NUMERICS[name]
    numerics = {"dtype": dtype, "kv_cache_dtype": kv_cache_dtype, "quantization": quantization, "isa": isa}
    for shape_name, shape in SHAPES.items():
        rng = random.Random(f"{name} {shape_name} {seed}")
        loads = random_loads(rng)
        runs = []
        with tempfile.TemporaryDirectory() as folder:
            save_random_checkpoint(shape, Path(folder))
            while sum(run.requests for run in runs) < count / len(SHAPES):
                work = random_work(rng, min(WORK, count), grammar_share=0.3)
                alone = serve_alone(Path(folder), work, backend="native", **numerics)
                for load in (next(loads), next(loads)):
                    runs.append(compare(Path(folder), work, alone, load | {"backend": "native"} | numerics, rng))
        names = ("requests", "drafted", "accepted", "preemptions", "window_slides", "stops")
        names += ("accepted_under_grammars", "rejected_under_grammars")
        census = ", ".join(f"{total} {n}" for n in names if (total := sum(getattr(run, n) for run in runs)))
        sys.stdout.write(f"{isa}, {name}, {shape_name}: {census}, 0 differences\n")
        sys.stdout.flush()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.measure.speculation_bits")
    parser.add_argument("--count", type=int, default=1000, help="requests of each numerics (default: %(default)s)")
    parser.add_argument("--isa", default=ISAS[-1], choices=ISAS)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for name in NUMERICS:
        compare_numerics(name, arguments.count, arguments.isa, arguments.seed)


if __name__ == "__main__":
    main()
