"""python -m tests.measure.kernels.instruction_sets [--isa NAME ..] [--rounds N]

Time one expert of 1024 x 10240 (31 M weights) on one thread with each instruction set of this machine: 1, 2, 16 and
256 rows, in bfloat16, int8 and int4. The sets take turns in each round; a cell is the least CPU time of all rounds.
"""

import argparse
import sys
import time
from collections import defaultdict

import torch

from model.ops.interface import FfnWeights
from model.ops.native.library import NativeLibrary
from model.ops.native.ops import NativeOps
from model.ops.quantization import Quantization

DIM, HIDDEN = 1024, 10240
ROWS = (1, 2, 16, 256)
CALLS = {1: 8, 2: 8, 16: 4, 256: 1}  # per round
KINDS: tuple[Quantization, ...] = ("none", "int8", "int4")


def expert() -> FfnWeights:
    """Return random weights [HIDDEN, DIM], [HIDDEN, DIM] and [DIM, HIDDEN]."""
    shapes = (HIDDEN, DIM), (HIDDEN, DIM), (DIM, HIDDEN)
    return FfnWeights(*(torch.randn(shape).mul(shape[1] ** -0.5).bfloat16() for shape in shapes))


def measure(isas: list[str], kind: Quantization, num_rounds: int) -> dict[tuple[str, int], float]:
    """Return the least seconds of CPU time by instruction set and number of rows."""
    library, weights = NativeLibrary(), expert()
    backends = [NativeOps(library, 1, isa, kind) for isa in isas]
    packed = backends[0].pack_ffn(weights)  # the same for every instruction set
    best_s: dict[tuple[str, int], float] = defaultdict(lambda: float("inf"))
    for _ in range(num_rounds):
        for count in ROWS:
            rows = torch.randn(count, DIM).bfloat16()
            for ops in backends:
                for _ in range(CALLS[count]):
                    start_s = time.thread_time()
                    ops.ffn(rows, packed)
                    key = ops.isa, count
                    best_s[key] = min(best_s[key], time.thread_time() - start_s)
    return best_s


def main() -> None:
    """Print a table of milliseconds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    available = NativeLibrary().isas()
    parser.add_argument("--isa", nargs="+", choices=available, default=available[1:], help="default: all but portable")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    sys.stdout.write(f"{'ms of CPU time':22}" + "".join(f"{count:>8} rows" for count in ROWS) + "\n")
    for kind in KINDS:
        best_s = measure(options.isa, kind, options.rounds)
        for isa in options.isa:
            name = "bfloat16" if kind == "none" else kind
            cells = "".join(f"{best_s[isa, count] * 1000:13.2f}" for count in ROWS)
            sys.stdout.write(f"{isa:12}{name:10}{cells}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
