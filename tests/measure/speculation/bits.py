"""Compare requests with drafts to the same requests alone, bit by bit, for every dtype and quantization.

python -m tests.measure.speculation.bits [--count REQUESTS] [--part I/N] [--results FILE] [--isa ISA] [--seed N]

Prints a line for each numerics: compared requests, verified and accepted drafted tokens, preemptions. Ends with an
AssertionError at the first difference.

--part I/N compares one of N parts, each of them other requests. --results appends the counts of what was compared to a
file, as a line of JSON each, and leaves out what the file has; the printed lines are then the sums of all of its parts.
So the parts may run one after the other, and one that was ended begins where it was. 1,000 requests of each numerics in
6 parts: for i in 1 2 3 4 5 6; do python -m tests.measure.speculation.bits --part $i/6 --results FILE; done
"""

import argparse
import json
import random
import sys
import tempfile
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from model.ops.native.library import NativeLibrary
from tests.engine.outputs.test_same_bits import DIMS, ISAS, NUMERICS
from tests.support.checkpoints.mixtral import Shape, save_random_checkpoint
from tests.support.speculation.drafted_runs import compare, random_loads, random_work, serve_alone

SHAPES = {"full": Shape(**DIMS, seed=1), "window": Shape(**DIMS, window=48, num_kv_heads=1, seed=2)}
WORK = 50  # requests that are served together


@dataclass(frozen=True)
class Comparison:
    """One part of the requests of one numerics and one shape."""

    isa: str
    numerics: str
    shape: str
    seed: int
    part: str
    count: int

    def run(self) -> Counter[str]:
        """Compare at least `count` requests and return what happened."""
        dtype, kv_cache_dtype, quantization = NUMERICS[self.numerics]
        numerics = {"dtype": dtype, "kv_cache_dtype": kv_cache_dtype, "quantization": quantization, "isa": self.isa}
        rng = random.Random(f"{self.numerics} {self.shape} {self.seed} {self.part}")
        loads = random_loads(rng)
        census: Counter[str] = Counter()
        with tempfile.TemporaryDirectory() as folder:
            save_random_checkpoint(SHAPES[self.shape], Path(folder))
            while census["requests"] < self.count:
                work = random_work(rng, min(WORK, self.count), grammar_share=0.3)
                alone = serve_alone(Path(folder), work, backend="native", **numerics)
                for load in (next(loads), next(loads)):
                    census.update(
                        asdict(compare(Path(folder), work, alone, load | {"backend": "native"} | numerics, rng))
                    )
        return census


class Results:
    """Counts of the comparisons that have ended, in a file if there is one."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        lines = path.read_text().splitlines() if path and path.exists() else []
        self._counts = {Comparison(**fields): Counter(counts) for fields, counts in map(json.loads, lines)}

    def __contains__(self, comparison: Comparison) -> bool:
        return comparison in self._counts

    def add(self, comparison: Comparison, counts: Counter[str]) -> None:
        self._counts[comparison] = counts
        if self._path:
            with self._path.open("a") as file:
                file.write(json.dumps([asdict(comparison), counts]) + "\n")

    def line(self, numerics: str) -> str:
        """Return the sums of one numerics over all parts."""
        found = {comparison: counts for comparison, counts in self._counts.items() if comparison.numerics == numerics}
        total = sum(found.values(), Counter[str]())
        isas = ", ".join(sorted({comparison.isa for comparison in found}))
        return (
            f"{isas}, {numerics}: " + ", ".join(f"{count} {name}" for name, count in total.items()) + ", 0 differences"
        )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.measure.speculation.bits")
    parser.add_argument("--count", type=int, default=1000, help="requests of each numerics (default: %(default)s)")
    parser.add_argument("--part", default="1/1", metavar="I/N", help="of the requests (default: %(default)s)")
    parser.add_argument("--results", type=Path, metavar="FILE", help="counts of the parts that have ended")
    parser.add_argument("--isa", default=NativeLibrary().fastest_isa(), choices=ISAS)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    results = Results(arguments.results)
    num_parts = int(arguments.part.partition("/")[2])
    count = -(-arguments.count // (num_parts * len(SHAPES)))
    for name in NUMERICS:
        for shape in SHAPES:
            comparison = Comparison(arguments.isa, name, shape, arguments.seed, arguments.part, count)
            if comparison not in results:
                results.add(comparison, comparison.run())
        sys.stdout.write(f"{results.line(name)}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
