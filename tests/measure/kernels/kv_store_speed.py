"""Time of rotation and of stores to the KV caches: python -m tests.measure.kernels.kv_store_speed [OTHER_LIBRARY]

One thread, 32 heads and 8 KV heads of 128, blocks of 16 positions; a row of each of 1 and 16 sequences, or 512
neighbouring rows. Every call writes to another layer's caches; no CPU cache holds them all. OTHER_LIBRARY is the
libsmoe_native.so of another version; calls take turns. Prints the least microseconds of each.
"""

import argparse
import ctypes
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from model.kv_format import KvDtype
from model.ops.huge_pages import zeros
from model.ops.native.library import ISAS, LIBRARY, NativeLibrary
from tests.measure.kernels.attention_speed import BLOCK_SIZE, CODES, HEAD_DIM, NUM_HEADS, NUM_KV_HEADS

CACHED_BYTES = {"bfloat16": 2 * HEAD_DIM, "int8": HEAD_DIM + 4}
LAYERS = {1: 64, 16: 64, 512: 16}  # by rows
NUM_BLOCKS = 64


def slots(rows: int) -> Tensor:
    """Return one slot in each of some blocks, or neighbouring ones."""
    if rows > NUM_BLOCKS:
        return torch.arange(rows)
    generator = torch.Generator().manual_seed(0)
    blocks = torch.randperm(NUM_BLOCKS, generator=generator)[:rows]
    return blocks * BLOCK_SIZE + torch.randint(0, BLOCK_SIZE, (rows,), generator=generator)


def stores(path: Path, isa: str, dtype: KvDtype, rows: int) -> Callable[[int], object]:
    """Return a call that rotates and stores the rows in a layer's caches."""
    library = ctypes.CDLL(str(path))
    library.smoe_pool_create.restype = ctypes.c_void_p
    pool = ctypes.c_void_p(library.smoe_pool_create(1))
    pointers, sizes = (ctypes.c_void_p,) * 7, (ctypes.c_int64,) * 5
    library.smoe_rope_and_store_kv.argtypes = (ctypes.c_void_p, *(ctypes.c_int,) * 4, *pointers, *sizes)
    num_bytes = NUM_BLOCKS * BLOCK_SIZE * NUM_KV_HEADS * CACHED_BYTES[dtype]
    caches = [[zeros(num_bytes, torch.uint8).fill_(0) for _ in range(2)] for _ in range(LAYERS[rows])]
    qkv = torch.randn(rows, (NUM_HEADS + 2 * NUM_KV_HEADS) * HEAD_DIM).bfloat16()
    q = torch.empty(rows, NUM_HEADS * HEAD_DIM, dtype=torch.bfloat16)
    cos, sin, places = torch.rand(rows, HEAD_DIM // 2), torch.rand(rows, HEAD_DIM // 2), slots(rows)
    sizes_given = rows, NUM_HEADS, NUM_KV_HEADS, HEAD_DIM, BLOCK_SIZE

    def call(layer: int) -> None:
        tensors = (qkv, q, *caches[layer], cos, sin, places)
        addresses = [tensor.data_ptr() for tensor in tensors]
        library.smoe_rope_and_store_kv(pool, ISAS.index(isa), 1, 1, CODES[dtype], *addresses, *sizes_given)

    return call


def least_us(calls: list[Callable[[int], object]], layers: int, seconds: float) -> list[float]:
    """Return the least microseconds of each call over all layers; the calls take turns by rounds of layers."""
    least = [float("inf")] * len(calls)
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        for index, call in enumerate(calls):
            for layer in range(layers):
                before = time.perf_counter()
                call(layer)
                least[index] = min(least[index], 1e6 * (time.perf_counter() - before))
    return least


def main() -> None:
    """Measure 1, 16 and 512 rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("other", nargs="?", type=Path)
    parser.add_argument("--isa", default=NativeLibrary().fastest_isa())
    parser.add_argument("--seconds", type=float, default=6.0, help="for each number of rows")
    arguments = parser.parse_args()
    paths = ([arguments.other] if arguments.other else []) + [LIBRARY]
    torch.set_num_threads(1)
    dtypes: tuple[KvDtype, ...] = ("bfloat16", "int8")
    names = ("before", "now")[-len(paths) :]
    sys.stdout.write(f"us: {[f'{dtype} {name}' for dtype in dtypes for name in names]}\n")
    for rows, layers in LAYERS.items():
        calls = [stores(path, arguments.isa, dtype, rows) for dtype in dtypes for path in paths]
        for call in calls:
            call(0)
        times = least_us(calls, layers, arguments.seconds)
        sys.stdout.write(f"{rows:4} rows" + "".join(f"{value:9.1f}" for value in times) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
