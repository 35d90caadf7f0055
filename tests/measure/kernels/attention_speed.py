"""Time of attention over bfloat16 and int8 caches: python -m tests.measure.kernels.attention_speed [OTHER_LIBRARY]

32 heads, 8 KV heads of 128, blocks of 16 positions in random order, on copies of the caches that no CPU cache holds.
OTHER_LIBRARY is the libsmoe_native.so of another version, with caches in rows or, by --tiles, in tiles; its calls take
turns with this version's.
Prints the least time of each (CPU time, if of one thread), and whether both gave the same bits.
"""

import argparse
import ctypes
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from model.kv_format import KvDtype
from model.ops.huge_pages import zeros
from model.ops.native.library import ISAS, LIBRARY, NativeLibrary
from model.ops.reference.kv_int8 import as_cached
from tests.support.kernels.kv_tiles import in_tiles

NUM_HEADS, NUM_KV_HEADS, HEAD_DIM, BLOCK_SIZE = 32, 8, 128, 16
COLD_BYTES = 200 << 20
DTYPES: dict[KvDtype, torch.dtype] = {"bfloat16": torch.bfloat16, "int8": torch.int8}
CODES = {"bfloat16": 1, "int8": 2}


@dataclass(frozen=True)
class Shape:
    """Sequences that each compute `rows` rows, the last of `context` positions."""

    sequences: int
    context: int
    rows: int = 1


SHAPES = (
    Shape(1, 256),
    Shape(16, 1024),
    Shape(16, 4096),
    Shape(16, 8192),
    Shape(1, 1024),
    Shape(1, 32768),
    Shape(1, 2048, 512),
)


class Library:
    """One version's smoe_attention, with its own threads."""

    def __init__(self, path: Path, threads: int, isa: str) -> None:
        self._call = ctypes.CDLL(str(path))
        self._call.smoe_pool_create.restype = ctypes.c_void_p
        self._pool = ctypes.c_void_p(self._call.smoe_pool_create(threads))
        self._isa = ISAS.index(isa)
        pointers, sizes = (ctypes.c_void_p,) * 7, (ctypes.c_int64,) * 7
        self._call.smoe_attention.argtypes = (ctypes.c_void_p, *(ctypes.c_int,) * 4, *pointers, *sizes)

    def attend(self, dtype: KvDtype, q: Tensor, k: Tensor, v: Tensor, tables: Tensor, shape: Shape) -> Tensor:
        out = torch.empty_like(q)
        starts = torch.arange(0, len(q) + 1, shape.rows, dtype=torch.int32)
        lengths = torch.full((shape.sequences,), shape.context, dtype=torch.int32)
        addresses = (tensor.data_ptr() for tensor in (q, k, v, out, starts, lengths, tables))
        sizes = *tables.shape, BLOCK_SIZE, NUM_HEADS, NUM_KV_HEADS, HEAD_DIM, 0
        self._call.smoe_attention(self._pool, self._isa, 1, 1, CODES[dtype], *addresses, *sizes)
        return out


def caches(num_blocks: int, dtype: KvDtype) -> tuple[Tensor, Tensor]:
    """Return keys and values in rows, [num_blocks, block_size, G, row]."""
    generator = torch.Generator().manual_seed(0)
    shape = num_blocks, BLOCK_SIZE, NUM_KV_HEADS, HEAD_DIM
    k, v = (as_cached(torch.randn(shape, generator=generator), DTYPES[dtype]) for _ in range(2))
    return k, v


def huge(cache: Tensor) -> Tensor:
    """Copy a cache to huge pages, where the product has it."""
    copy = zeros(cache.numel(), cache.dtype).view(cache.shape)
    return copy.copy_(cache)


def least(calls: list[Callable[[int], object]], copies: int, seconds: float, clock: Callable[[], float]) -> list[float]:
    """Return the least milliseconds of each call; they take turns, over all copies."""
    times = [float("inf")] * len(calls)
    end, turn = time.perf_counter() + seconds, 0
    while time.perf_counter() < end or turn < 5:
        for index, call in enumerate(calls):
            before = clock()
            call(turn % copies)
            times[index] = min(times[index], 1e3 * (clock() - before))
        turn += 1
    return times


def _attend(
    library: Library,
    dtype: KvDtype,
    q: Tensor,
    sets: list[tuple[Tensor, Tensor]],
    tables: Tensor,
    shape: Shape,
    copy: int,
) -> Tensor:
    return library.attend(dtype, q, *sets[copy], tables, shape)


def measure(
    libraries: list[Library], shape: Shape, seconds: float, threads: int, cold_bytes: int, other_in_tiles: bool
) -> None:
    """Print one line for a shape."""
    blocks = shape.sequences * shape.context // BLOCK_SIZE
    generator = torch.Generator().manual_seed(1)
    q = torch.randn(shape.sequences * shape.rows, NUM_HEADS, HEAD_DIM, generator=generator).bfloat16()
    calls: list[Callable[[int], object]] = []
    results: list[Tensor] = []
    smallest = blocks * BLOCK_SIZE * NUM_KV_HEADS * (HEAD_DIM + 4) * 2
    copies = max(1, -(-cold_bytes // smallest))
    for dtype in DTYPES:
        k, v = caches(blocks, dtype)
        tiles = in_tiles(k, is_keys=True), in_tiles(v, is_keys=False)
        layouts = [tiles if other_in_tiles else (k, v), tiles]
        tables = torch.randperm(blocks, generator=torch.Generator().manual_seed(2)).int().view(shape.sequences, -1)
        for library, (keys, values) in zip(libraries, layouts[-len(libraries) :], strict=True):
            sets = [(huge(keys), huge(values)) for _ in range(copies)]

            call = partial(_attend, library, dtype, q, sets, tables, shape)
            results.append(call(0))
            calls.append(call)
    times = least(calls, copies, seconds, time.thread_time if threads == 1 else time.perf_counter)
    columns = "".join(f"{value:9.3f}" for value in times)
    sys.stdout.write(
        f"{shape.sequences:3} x {shape.context:5} {shape.rows:4} rows {columns}  {_ratios(times, results)}\n"
    )
    sys.stdout.flush()


def _ratios(times: list[float], results: list[Tensor]) -> str:
    if len(times) == len(DTYPES):
        return f"int8/bf16 {times[1] / times[0]:.2f}"
    same = torch.equal(results[0], results[1]) and torch.equal(results[2], results[3])
    faster = f"bf16 {times[0] / times[1]:.2f} int8 {times[2] / times[3]:.2f} times faster"
    return f"{faster}; int8/bf16 {times[2] / times[0]:.2f} before, {times[3] / times[1]:.2f} now; same bits: {same}"


def main() -> None:
    """Measure all shapes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("other", nargs="?", type=Path)
    parser.add_argument("--tiles", action="store_true", help="the other version has caches in tiles too")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--isa", default=NativeLibrary().fastest_isa())
    parser.add_argument("--seconds", type=float, default=8.0, help="for each shape")
    parser.add_argument("--hot", action="store_true", help="one copy of the caches")
    parser.add_argument("--shapes", default="", help="numbers of the shapes to measure")
    arguments = parser.parse_args()
    paths = [arguments.other] if arguments.other else []
    libraries = [Library(path, arguments.threads, arguments.isa) for path in (*paths, LIBRARY)]
    torch.set_num_threads(1)
    chosen = [SHAPES[int(number)] for number in arguments.shapes.split(",") if number] or SHAPES
    names = ("before", "now")[-len(libraries) :]
    sys.stdout.write(f"ms: {[f'{dtype} {name}' for dtype in DTYPES for name in names]}\n")
    for shape in chosen:
        cold_bytes = 0 if arguments.hot else COLD_BYTES
        measure(libraries, shape, arguments.seconds, arguments.threads, cold_bytes, arguments.tiles)


if __name__ == "__main__":
    main()
