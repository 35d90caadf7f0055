"""Measures the front end alone: the real API process over an engine without a model, with many streams at once."""

import asyncio
import re
import signal
import sys
import time
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from server.bench.http_client import Endpoint
from server.bench.load_generator import RequestTiming, Target, closed_loop, first_model
from server.bench.report import gaps, spread
from server.bench.workload import BenchRequest

TOKENS_PER_STREAM = 400
PROMPT = [300, 301, 302, 303]
START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 10.0
_URL = re.compile(rb" at (http://\S+) after ")


class StubError(Exception):
    """A stub server that does not start, or whose CPU time cannot be read. One line."""


async def measure(num_streams: int, tokens_per_stream: int, steps_per_s: float) -> dict[str, Any]:
    """Run `num_streams` streams at once and return their figures. Raises StubError.

    `chunks_per_core_s`: chunks per second of CPU time of the API process; None if that time is too short for the
    clock. If the process is slower than the engine's steps, one chunk carries several tokens, so there are fewer chunks
    than tokens.
    """
    async with stub_server(steps_per_s) as (endpoint, pid):
        target = Target(endpoint, await first_model(endpoint))
        await closed_loop(target, [BenchRequest(PROMPT, 8)] * num_streams, num_streams)  # warm-up
        busy_s, start_s = cpu_seconds(pid), time.perf_counter()
        timings = await closed_loop(target, [BenchRequest(PROMPT, tokens_per_stream)] * num_streams, num_streams)
        seconds = time.perf_counter() - start_s
        return figures(timings, seconds, cpu_seconds(pid) - busy_s, steps_per_s)


def figures(timings: Sequence[RequestTiming], seconds: float, busy_s: float, steps_per_s: float) -> dict[str, Any]:
    """Return the figures of one round, given its wall time and the CPU time of the API process."""
    num_chunks = sum(len(timing.chunk_s) for timing in timings)
    num_tokens = sum(timing.output_tokens for timing in timings)
    return {
        "kind": "stub",
        "streams": len(timings),
        "errors": sum(timing.error is not None for timing in timings),
        "steps_per_s": steps_per_s,
        "seconds": seconds,
        "cpu_seconds": busy_s,
        "chunks": num_chunks,
        "tokens": num_tokens,
        "chunks_per_s": num_chunks / seconds,
        "chunks_per_core_s": num_chunks / busy_s if busy_s else None,
        "tokens_per_core_s": num_tokens / busy_s if busy_s else None,
        "gap_s": spread([gap for timing in timings for gap in gaps(timing.chunk_s)]),
    }


def as_text(figures: dict[str, Any]) -> str:
    """Return the figures for the terminal, in two lines."""
    per_core = figures["chunks_per_core_s"]
    rate = "too short to be measured" if per_core is None else f"{per_core:,.0f} chunks/s per core"
    return (
        f"{figures['streams']} streams, {figures['tokens']:,} tokens in {figures['chunks']:,} chunks, "
        f"{figures['errors']} errors, {figures['seconds']:.2f} s\n"
        f"delivered {figures['chunks_per_s']:,.0f} chunks/s; the API process was busy {figures['cpu_seconds']:.2f} s: "
        f"{rate}"
    )


@asynccontextmanager
async def stub_server(steps_per_s: float) -> AsyncGenerator[tuple[Endpoint, int], None]:
    """Start a server on a free loopback port, yield its endpoint and process id, and stop it after the block."""
    command = (sys.executable, "-m", "server.bench.stub_server", str(steps_per_s))
    process = await asyncio.create_subprocess_exec(*command, stdout=PIPE, stderr=PIPE)
    try:
        async with asyncio.timeout(START_TIMEOUT_S):
            url = await _read_url(process)
        yield Endpoint.parse(url), process.pid
    except TimeoutError:
        raise StubError(f"the stub server was not ready within {START_TIMEOUT_S:.0f} s") from None
    finally:
        await _stop(process)


async def _read_url(process: Process) -> str:
    """Read the log up to the line with the URL, which the server writes when it is ready."""
    assert process.stderr is not None
    last_line = b""
    while line := await process.stderr.readline():
        if match := _URL.search(line):
            return match[1].decode()
        last_line = line
    raise StubError(f"the stub server ended: {last_line.decode(errors='replace').strip()}")


async def _stop(process: Process) -> None:
    """Send SIGTERM twice, so that the server does not wait for running requests."""
    if process.returncode is not None:
        return
    for _ in range(2):
        process.send_signal(signal.SIGTERM)
    try:
        await asyncio.wait_for(process.communicate(), STOP_TIMEOUT_S)
    except TimeoutError:
        process.kill()
        await process.communicate()


def cpu_seconds(pid: int) -> float:
    """Return the user and system time of a process so far. Raises StubError on systems without such a clock.

    The clock's number is that of Linux's clock_getcpuclockid(3), which Python's time module lacks.
    """
    try:
        return time.clock_gettime((~pid << 3) | 2)
    except (OSError, AttributeError):
        raise StubError("this system cannot measure the CPU time of another process") from None
