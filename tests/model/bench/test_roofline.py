"""Limits of the machine: what the measuring kernels read and count, and the arithmetic of the roofline."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

from model.bench.roofline import ARITHMETICS, Roofline, captured, measure
from model.mixtral_cuda_graphs import CaptureError, EagerRecorder
from model.ops.native.library import NativeLibrary
from model.ops.native.ops import NativeOps
from model.ops.reference.ops import ReferenceOps
from tests.support.kernels.tiny_roofline import shrink_measurements

# Numbers in a register; 16 elsewhere
VECTORS = {"portable": 4, "neon": 4, "neonbf16": 4, "avx2": 8, "avxvnni": 8}
ROOFLINE = Roofline(100.0, {"float32": 10.0, "bfloat16": 20.0})


@pytest.fixture
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    shrink_measurements(monkeypatch)


def native_ops() -> list[NativeOps]:
    library = NativeLibrary()
    return [NativeOps(library, 2, isa) for isa in library.isas()]


@pytest.mark.parametrize("num_bytes", [0, 1, 63, 64, 511, 4096, (1 << 20) + 77, (3 << 20) - 4])
def test_reading_everything_sums_every_word(num_bytes: int) -> None:
    """Full strides are summed as 32-bit words, the bytes behind the last one singly."""
    buffer = torch.randint(0, 256, (num_bytes,), dtype=torch.uint8)
    for ops in native_ops():
        stride = 8 * 4 * VECTORS.get(ops.isa, 16)
        whole = num_bytes // stride * stride
        array = buffer.numpy()
        expected = int(array[:whole].view(np.uint32).sum(dtype=np.uint64)) + int(array[whole:].sum(dtype=np.uint64))
        assert ops.read_all(buffer) == expected % 2**32


def test_peaks_count_the_operations_of_all_threads() -> None:
    """16 tasks per thread, each with 12 chains of two operations per number in a register, or with tile products."""
    for ops in native_ops():
        in_float32, in_tiles = 32 * 12 * VECTORS.get(ops.isa, 16) * 2, 32 * 4 * 16 * 16 * 32 * 2
        in_bfloat16 = {"amx": in_tiles, "avx512bf16": 2 * in_float32, "neonbf16": 4 * in_float32}.get(
            ops.isa, in_float32
        )
        without_int8 = {"portable": 0, "avx2": 0, "avx512": 0}
        in_int8 = ({"amx": 2 * in_tiles, "neonbf16": 8 * in_float32} | without_int8).get(ops.isa, 4 * in_float32)
        assert [ops.peak_operations(kind, 16) for kind in range(3)] == [in_float32, in_bfloat16, in_int8]
        assert ops.peak_operations(0, 160) == 10 * in_float32


@pytest.mark.usefixtures("fast")
def test_every_limit_is_positive() -> None:
    for ops in (*native_ops(), ReferenceOps()):
        limits = measure(ops, torch.device("cpu"))
        assert limits.bytes_per_s > 0
        assert {"float32", "bfloat16"} <= set(limits.operations_per_s) <= set(ARITHMETICS)
        assert all(peak > 0 for peak in limits.operations_per_s.values())


def test_the_limit_is_the_slower_of_memory_and_arithmetic() -> None:
    assert ROOFLINE.limit_s(200, 10, "float32") == 2.0
    assert ROOFLINE.limit_s(100, 40, "float32") == 4.0
    assert ROOFLINE.limit_s(100, 40, "bfloat16") == 2.0


def test_calls_are_captured_together_or_made_one_by_one_if_that_fails() -> None:
    class Failing:
        def record(self, work: Callable[[], object]) -> Callable[[], object]:
            raise CaptureError("no")

    made: list[int] = []
    calls = [lambda: made.append(1), lambda: made.append(2)]
    captured(calls, Failing())()
    assert made == [1, 2]
    replay = captured(calls, EagerRecorder())  # records by running the work once
    replay()
    assert made == [1, 2] * 3
