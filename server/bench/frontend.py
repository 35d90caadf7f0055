"""The front end alone: the real API process over an engine that computes nothing, driven by many streams."""

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
    """The stubbed server does not start, or its processor time cannot be read. One line."""


async def measure(num_streams: int, tokens_per_stream: int, steps_per_s: float) -> dict[str, Any]:
    """One round of `num_streams` at once. Raises StubError.

    `chunks_per_core_s`: chunks over the API process' processor time, which is what one core would carry; None where
    that time was too short for the clock. Where the process cannot keep up with the steps, tokens share chunks, and
    there are fewer of these than tokens.
    """
    async with stubbed_server(steps_per_s) as (endpoint, pid):
        target = Target(endpoint, await first_model(endpoint))
        await closed_loop(target, [BenchRequest(PROMPT, 8)] * num_streams, num_streams)  # warm-up
        busy_s, start_s = cpu_seconds(pid), time.perf_counter()
        records = await closed_loop(target, [BenchRequest(PROMPT, tokens_per_stream)] * num_streams, num_streams)
        seconds = time.perf_counter() - start_s
        return figures(records, seconds, cpu_seconds(pid) - busy_s, steps_per_s)


def figures(records: Sequence[RequestTiming], seconds: float, busy_s: float, steps_per_s: float) -> dict[str, Any]:
    num_chunks = sum(len(record.chunk_s) for record in records)
    num_tokens = sum(record.output_tokens for record in records)
    return {
        "kind": "stub",
        "streams": len(records),
        "errors": sum(record.error is not None for record in records),
        "steps_per_s": steps_per_s,
        "seconds": seconds,
        "cpu_seconds": busy_s,
        "chunks": num_chunks,
        "tokens": num_tokens,
        "chunks_per_s": num_chunks / seconds,
        "chunks_per_core_s": num_chunks / busy_s if busy_s else None,
        "tokens_per_core_s": num_tokens / busy_s if busy_s else None,
        "gap_s": spread([gap for record in records for gap in gaps(record.chunk_s)]),
    }


def shown(figures: dict[str, Any]) -> str:
    """For the terminal."""
    per_core = figures["chunks_per_core_s"]
    rate = "too short to be measured" if per_core is None else f"{per_core:,.0f} chunks/s per core"
    return (
        f"{figures['streams']} streams, {figures['tokens']:,} tokens in {figures['chunks']:,} chunks, "
        f"{figures['errors']} errors, {figures['seconds']:.2f} s\n"
        f"delivered {figures['chunks_per_s']:,.0f} chunks/s; the API process was busy {figures['cpu_seconds']:.2f} s: "
        f"{rate}"
    )


@asynccontextmanager
async def stubbed_server(steps_per_s: float) -> AsyncGenerator[tuple[Endpoint, int], None]:
    """A server on a free loopback port, and its process id. It ends with the block."""
    command = (sys.executable, "-m", "server.bench.stub_server", str(steps_per_s))
    process = await asyncio.create_subprocess_exec(*command, stdout=PIPE, stderr=PIPE)
    try:
        async with asyncio.timeout(START_TIMEOUT_S):
            url = await _url(process)
        yield Endpoint.parse(url), process.pid
    except TimeoutError:
        raise StubError(f"the stubbed server was not ready within {START_TIMEOUT_S:.0f} s") from None
    finally:
        await _stop(process)


async def _url(process: Process) -> str:
    """From the line that the server writes once it serves."""
    assert process.stderr is not None
    told = b""
    while line := await process.stderr.readline():
        if match := _URL.search(line):
            return match[1].decode()
        told = line
    raise StubError(f"the stubbed server ended: {told.decode(errors='replace').strip()}")


async def _stop(process: Process) -> None:
    """Twice told to end, it does not wait for what runs."""
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
    """User and system time of a process so far, by its CPU clock: clock_getcpuclockid(3) of Linux, which Python's time
    module lacks. Raises StubError where there is none."""
    try:
        return time.clock_gettime((~pid << 3) | 2)
    except (OSError, AttributeError):
        raise StubError("this system does not tell the processor time of another process") from None
