"""Peak memory of a process and its descendants. Needs psutil: `pip install 'smoe[bench]'`."""

import asyncio
import contextlib
import importlib.util
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

from server.bench.compare.server_process import ServerError

SAMPLE_S = 0.5


def check_available() -> None:
    """Raise ServerError if psutil is not installed."""
    if importlib.util.find_spec("psutil") is None:
        raise ServerError("the memory of servers is measured with psutil: pip install 'smoe[bench]'")


class PeakMemory:
    """The greatest sample so far, in bytes: each page that processes share counts once where the system tells (PSS)."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self.bytes = 0

    async def sample(self) -> None:
        """Sample now. A thread reads the figures, which takes milliseconds for a large process."""
        self.bytes = max(self.bytes, await asyncio.to_thread(tree_bytes, self._pid))


@asynccontextmanager
async def peak_memory(pid: int) -> AsyncGenerator[PeakMemory, None]:
    """Sample inside the block and at its end."""
    peak = PeakMemory(pid)

    async def sample_again_and_again() -> None:
        while True:
            await peak.sample()
            await asyncio.sleep(SAMPLE_S)

    sampling = asyncio.create_task(sample_again_and_again())
    try:
        yield peak
        await peak.sample()
    finally:
        sampling.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await sampling


def tree_bytes(pid: int) -> int:
    """Return the memory of a process and its descendants; 0 if it has ended."""
    import psutil

    try:
        parent = psutil.Process(pid)
        return sum(map(_bytes_of, [parent, *parent.children(recursive=True)]))
    except psutil.NoSuchProcess:
        return 0


def _bytes_of(process: Any) -> int:
    import psutil

    try:
        full = process.memory_full_info()
    except psutil.NoSuchProcess:
        return 0
    except psutil.AccessDenied:  # of macOS, for shared pages
        full = process.memory_info()
    return int(getattr(full, "pss", full.rss))
