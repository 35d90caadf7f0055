"""Measure the limits of the machine: memory bandwidth and arithmetic throughput (Williams et al. 2009)."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from statistics import median
from time import perf_counter

import torch

from model.mixtral_cuda_graphs import CaptureError, CudaRecorder, GraphRecorder
from model.ops.huge_pages import empty
from model.ops.interface import Ops
from model.ops.native.ops import NativeOps

BUFFER_BYTES = 512 << 20  # larger than caches
MIN_ROUND_S = 0.05
NUM_ROUNDS = 5
ARITHMETICS = ("float32", "bfloat16", "int8")
PEAK_ROUNDS = 1 << 20
MATMUL_SIZE = {"cpu": 1024, "cuda": 8192}


@dataclass(frozen=True)
class Roofline:
    """Bytes per second of a streaming read, operations per second of each arithmetic (two per multiply-add)."""

    bytes_per_s: float
    operations_per_s: dict[str, float]  # by name; those of ARITHMETICS that the device supports

    def limit_s(self, num_bytes: float, num_operations: float, arithmetic: str) -> float:
        """Return the shortest time in which the machine can read `num_bytes` and do `num_operations`."""
        return max(num_bytes / self.bytes_per_s, num_operations / self.operations_per_s[arithmetic])

    def as_fields(self) -> dict[str, object]:
        return asdict(self)


def seconds_of(calls: Sequence[Callable[[], object]], device: torch.device) -> float:
    """Return the time of one call: the median of NUM_ROUNDS rounds, each of at least MIN_ROUND_S.

    A round makes all calls in turn. They do the same on different memory, so that no call finds its data in a cache. On
    a GPU they are captured as one CUDA graph, which is replayed: launches by the host would take longer than kernels.
    """
    num_calls = len(calls)
    if device.type == "cuda":
        calls = [captured(calls, CudaRecorder())]
    _timed(calls, 1, device)  # warms up
    repeats = 1
    while (elapsed := _timed(calls, repeats, device)) < MIN_ROUND_S:
        repeats = max(2 * repeats, int(repeats * MIN_ROUND_S / max(elapsed, 1e-6)))
    rounds = [elapsed, *(_timed(calls, repeats, device) for _ in range(NUM_ROUNDS - 1))]
    return median(rounds) / (repeats * num_calls)


def captured(calls: Sequence[Callable[[], object]], recorder: GraphRecorder) -> Callable[[], object]:
    """Return a function that makes all calls in turn: a graph, or the calls themselves if the capture fails."""

    def all_calls() -> None:
        for call in calls:
            call()

    try:
        return recorder.record(all_calls)
    except CaptureError:
        return all_calls


def _timed(calls: Sequence[Callable[[], object]], repeats: int, device: torch.device) -> float:
    _finish(device)
    start = perf_counter()
    for _ in range(repeats):
        for call in calls:
            call()
    _finish(device)
    return perf_counter() - start


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def measure(ops: Ops, device: torch.device) -> Roofline:
    """Measure the device: with the native backend's own threads and instructions, else with torch."""
    if isinstance(ops, NativeOps):
        return Roofline(_native_bandwidth(ops), _native_peaks(ops))
    return Roofline(_copy_bandwidth(device), _matmul_peaks(device))


class RooflineProbe:
    """Current limits of the machine.

    A CPU may be shared with other programs, so its limits change from second to second and are measured at each call of
    now(). A GPU is measured once.
    """

    def __init__(self, ops: Ops, device: torch.device) -> None:
        self.at_start = measure(ops, device)
        self._ops = ops
        self._device = device

    def now(self) -> Roofline:
        """Return the current limits. Takes about a second on a CPU."""
        return measure(self._ops, self._device) if self._device.type == "cpu" else self.at_start


def _native_bandwidth(ops: NativeOps) -> float:
    buffer = empty(BUFFER_BYTES, torch.uint8).fill_(1)
    return BUFFER_BYTES / seconds_of([lambda: ops.read_all(buffer)], torch.device("cpu"))


def _native_peaks(ops: NativeOps) -> dict[str, float]:
    cpu = torch.device("cpu")
    peaks = {}
    for number, name in enumerate(ARITHMETICS):
        if count := ops.peak_operations(number, 1):
            count = ops.peak_operations(number, PEAK_ROUNDS)
            peaks[name] = count / seconds_of([partial(ops.peak_operations, number, PEAK_ROUNDS)], cpu)
    return peaks


def _copy_bandwidth(device: torch.device) -> float:
    """Measure a copy, which reads as many bytes as it writes."""
    source = torch.ones(BUFFER_BYTES, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * BUFFER_BYTES / seconds_of([lambda: target.copy_(source)], device)


def _matmul_peaks(device: torch.device) -> dict[str, float]:
    """Measure products of large square matrices. int8 is left out: torch devices widen quantized weights first."""
    size = MATMUL_SIZE[device.type]
    peaks = {}
    for name in ("float32", "bfloat16"):
        matrix = torch.randn(size, size, device=device, dtype=getattr(torch, name))
        peaks[name] = 2 * size**3 / seconds_of([partial(torch.mm, matrix, matrix)], device)
    return peaks
