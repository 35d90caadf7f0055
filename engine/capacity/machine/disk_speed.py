"""Speed at which the experts of a pack can be read, measured by a short sample. No torch."""

import mmap
import os
import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from engine.capacity.machine.host_resources import format_bytes
from engine.errors import EngineConfigError
from model.checkpoint.errors import CheckpointError
from model.checkpoint.pack.direct_file import open_direct
from model.checkpoint.pack.experts import expert_tensors
from model.checkpoint.pack.header import WEIGHTS_NAME, read_header

NUM_READERS = 8  # as in model/ops/native/expert_store.py
PIECE_BYTES = 2 << 20  # of a read, as in model/native/store/expert_store.cpp
SAMPLE_BYTES = 1 << 30
LIMIT_S = 1.0  # no read begins later


@dataclass(frozen=True)
class DiskSample:
    """A measurement of a disk: the bytes read and the time they took."""

    num_bytes: int
    seconds: float

    @property
    def rate(self) -> float:
        """Bytes per second."""
        return self.num_bytes / self.seconds

    def __str__(self) -> str:
        return f"{self.rate / 1e9:.2f} GB/s ({format_bytes(self.num_bytes)} of the pack read in {self.seconds:.2f} s)"


def disk_rate(pack: Path, sample_bytes: int = SAMPLE_BYTES, limit_s: float = LIMIT_S) -> float:
    """Return the bytes per second of disk_sample()."""
    return disk_sample(pack, sample_bytes, limit_s).rate


def disk_sample(
    pack: Path,
    sample_bytes: int = SAMPLE_BYTES,
    limit_s: float = LIMIT_S,
    clock: Callable[[], float] = time.perf_counter,
) -> DiskSample:
    """Measure direct reads of whole experts in a random order, several pieces at once.

    Reads up to `sample_bytes`. Raises EngineConfigError for a damaged pack or a disk that cannot be read.
    """
    try:
        experts = expert_tensors(read_header(pack))
        if not experts.count:
            raise EngineConfigError(f"{pack} has no experts, of which a sample could be read")
        descriptor = open_direct(pack / WEIGHTS_NAME)
    except CheckpointError as error:
        raise EngineConfigError(str(error)) from None
    tensors = [tensor for layer in experts.layers for tensor in layer]
    random.Random(0).shuffle(tensors)
    places = [start for one in tensors for start in range(one.start, one.start + one.num_bytes, PIECE_BYTES)]
    sample = _Sample(descriptor, places[: max(1, sample_bytes // PIECE_BYTES)], clock)
    start_s = clock()
    try:
        sample.read(start_s + limit_s)
    except OSError as error:
        raise EngineConfigError(f"{pack / WEIGHTS_NAME} cannot be read: {error.strerror}") from None
    finally:
        os.close(descriptor)
    return DiskSample(sample.num_bytes, clock() - start_s)


class _Sample:
    """Places of a file, each read once by one of several threads."""

    def __init__(self, descriptor: int, places: list[int], clock: Callable[[], float]) -> None:
        self._descriptor, self._places, self._clock = descriptor, iter(places), clock
        self._end_s = 0.0
        self._buffers = [mmap.mmap(-1, PIECE_BYTES) for _ in range(NUM_READERS)]
        for buffer in self._buffers:
            buffer.write(bytes(PIECE_BYTES))  # the pages take time now, not while they are read into
        self._lock = threading.Lock()
        self._error: OSError | None = None
        self.num_bytes = 0

    def read(self, end_s: float) -> None:
        """Read all places, or those whose reads begin before `end_s`. Raises OSError."""
        self._end_s = end_s
        threads = [threading.Thread(target=self._run, args=(buffer,)) for buffer in self._buffers]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if self._error is not None:
            raise self._error

    def _run(self, buffer: mmap.mmap) -> None:
        while (place := self._take()) is not None:
            try:
                count = os.preadv(self._descriptor, [buffer], place)
            except OSError as error:
                self._error = error
                return
            with self._lock:
                self.num_bytes += count

    def _take(self) -> int | None:
        with self._lock:
            is_late = self.num_bytes > 0 and self._clock() > self._end_s
            return None if is_late or self._error else next(self._places, None)
