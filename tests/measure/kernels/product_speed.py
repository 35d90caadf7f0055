"""Time of products: python -m tests.measure.kernels.product_speed [OTHER_LIBRARY]

Experts and the qkv projection of bench-400m (dim 1024, 8 experts of 1792, top 2; 1536 outputs), on copies of the
weights that no CPU cache holds. OTHER_LIBRARY is the libsmoe_native.so of another version; its calls take turns with
this version's. Prints the lower quartile of each (CPU time, if of one thread), and whether both gave the same bits.
"""

import argparse
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TypeAlias

import torch
from torch import Tensor

from model.ops.interface import FfnWeights
from model.ops.native.library import NativeLibrary
from model.ops.native.ops import NativeOps
from model.ops.native.packed_weights import NativeLinear, NativeMoe
from model.ops.quantization import Quantization
from model.ops.weights import BLOCK_SIZES, Weight
from tests.support.checkpoints.block_matrices import random_blocks
from tests.support.routing_requests import uniform_request

DIM, HIDDEN, NUM_EXPERTS, TOP_K, QKV_OUTPUTS = 1024, 1792, 8, 2, 1536
COPIES = {"experts": 5, "qkv": 47}  # odd: two versions get all copies in turn
ROWS = (1, 4, 16, 64, 128, 512)

Function: TypeAlias = Callable[[NativeOps, Tensor, int], Tensor]


def _random(*shape: int) -> Tensor:
    return torch.randn(shape).mul(shape[-1] ** -0.5).bfloat16()


def _matrix(kind: str, outputs: int, inputs: int) -> Weight:
    if kind not in BLOCK_SIZES:
        return _random(outputs, inputs)
    return random_blocks(kind, outputs, inputs, seed=int(torch.randint(1 << 31, ())))


def _expert(kind: str) -> FfnWeights:
    return FfnWeights(_matrix(kind, HIDDEN, DIM), _matrix(kind, HIDDEN, DIM), _matrix(kind, DIM, HIDDEN))


def _multiply(packed: list[NativeMoe] | list[NativeLinear], ops: NativeOps, rows: Tensor, copy: int) -> Tensor:
    weights = packed[copy % len(packed)]
    if isinstance(weights, NativeLinear):
        return ops.linear(rows, weights)
    return ops.moe(rows, weights, uniform_request(len(rows), TOP_K))


def functions(packer: NativeOps, kind: str) -> dict[str, Function]:
    """Return the products by name; each takes the number of a copy of its weights."""
    experts = [_expert(kind) for _ in range(NUM_EXPERTS)]
    moe = [packer.pack_moe(_random(NUM_EXPERTS, DIM), iter(experts)) for _ in range(COPIES["experts"])]
    qkv = _matrix(kind, QKV_OUTPUTS, DIM)
    linear = [packer.pack_linear(qkv) for _ in range(COPIES["qkv"])]
    return {"experts": partial(_multiply, moe), "qkv": partial(_multiply, linear)}


def quartiles(calls: list[Callable[[int], object]], seconds: float, clock: Callable[[], float]) -> list[float]:
    """Return the lower quartile of each call's milliseconds; they take turns, over all copies."""
    times: list[list[float]] = [[] for _ in calls]
    end, turn = time.perf_counter() + seconds, 0
    while time.perf_counter() < end or turn < 8:
        for call, taken in zip(calls, times, strict=True):
            before = clock()
            call(turn)
            taken.append(1e3 * (clock() - before))
            turn += 1
    return [sorted(taken)[len(taken) // 4] for taken in times]


def main() -> None:
    """Print a line for each kind of weights, product and number of rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("other", nargs="?", type=Path)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--isa", default=NativeLibrary().fastest_isa())
    parser.add_argument("--seconds", type=float, default=2.0, help="for each line")
    parser.add_argument("--kinds", default="none,lossless,int8,int4", help="quantizations and block formats")
    parser.add_argument("--rows", default=",".join(map(str, ROWS)))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    paths = [arguments.other, None] if arguments.other else [None]
    clock = time.thread_time if arguments.threads == 1 else time.perf_counter
    for kind in arguments.kinds.split(","):
        quantization: Quantization = "none" if kind in BLOCK_SIZES else kind
        backends = [NativeOps(NativeLibrary(path), arguments.threads, arguments.isa, quantization) for path in paths]
        torch.manual_seed(0)
        for name, function in functions(backends[-1], kind).items():
            for count in map(int, arguments.rows.split(",")):
                rows = torch.randn(count, DIM).bfloat16()
                results = [function(ops, rows, 0) for ops in backends]
                times = quartiles([partial(function, ops, rows) for ops in backends], arguments.seconds, clock)
                same = all(torch.equal(results[0], result) for result in results)
                columns = "".join(f"{value:9.3f}" for value in times)
                ratio = f"{times[0] / times[-1]:6.2f}"
                sys.stdout.write(f"{kind:12} {name:8} {count:4} rows {columns} ms {ratio}  same bits: {same}\n")
                sys.stdout.flush()


if __name__ == "__main__":
    main()
