"""python -m tests.measure.reliability.attacks [--json FILE] [--seconds N] [SHAPE ...]

Measure what one API key can do to another: the p99 of the other's first token while the first one attacks, beside the
same p99 while the first one is an honest client (`fair half`), before and after the attacks on the same server. Attacks
run in a process of their own. Nothing is asserted, because the machine may be busy.
"""

import argparse
import asyncio
import contextlib
import json
import random
import ssl
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tests.measure.reliability.attack_shapes import HONEST, SHAPES, Shape, completion, post
from tests.support.servers.running import RunningServer, start_server
from tests.support.servers.serving import TLS_FILES

KEYS = ("attacker", "victim")
NUM_VICTIMS = 2  # connections of the other key, one request after the other
SETTLE_S = 1.0  # attackers run so long before the first measured request
ANSWER_S = 60.0
VICTIM = post("/v1/completions", completion(stream=True, max_tokens=2), key="victim")


def percentile(values: list[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(share * len(values)))] if values else float("nan")


async def connect(url: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    parts = urlsplit(url)
    context = None
    if parts.scheme == "https":
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return await asyncio.open_connection(parts.hostname, parts.port, ssl=context)


async def attack_once(url: str, request: bytes, shape: Shape, statuses: Counter[str], until_s: float) -> None:
    reader, writer = await connect(url)
    try:
        writer.write(request[:-1] if shape.ending == "hold" else request)
        if shape.ending == "leave":
            await asyncio.sleep(0.01 if request else 0)
            statuses["left"] += 1
            return
        await writer.drain()
        if shape.ending in ("stall", "hold"):
            await asyncio.sleep(max(0.0, min(5.0, until_s - time.monotonic())))
            statuses[shape.ending] += 1
            return
        head = await asyncio.wait_for(reader.read(1 << 16), ANSWER_S)
        statuses[head[9:12].decode() or "closed"] += 1
        while await asyncio.wait_for(reader.read(1 << 20), ANSWER_S):
            pass
    finally:
        writer.transport.abort()


async def attack(url: str, shape: Shape, seconds: float) -> Counter[str]:
    """Run the shape's connections; return the statuses of its answers."""
    statuses: Counter[str] = Counter()
    until_s = time.monotonic() + seconds

    async def connection(number: int) -> None:
        for request in shape.requests(random.Random(number)):
            if time.monotonic() >= until_s:
                return
            try:
                async with asyncio.timeout(until_s - time.monotonic() + 1):
                    await attack_once(url, request, shape, statuses, until_s)
            except (OSError, TimeoutError, ssl.SSLError) as error:
                statuses[type(error).__name__] += 1
                await asyncio.sleep(0.05)

    await asyncio.gather(*map(connection, range(shape.num_connections)))
    return statuses


async def first_token_s(url: str) -> float:
    """Return the seconds from connecting to the first event; infinity for an error."""
    start_s = time.monotonic()
    try:
        async with asyncio.timeout(ANSWER_S):
            reader, writer = await connect(url)
            try:
                writer.write(VICTIM)
                while line := await reader.readline():
                    if line.startswith(b"data: {"):
                        return time.monotonic() - start_s
            finally:
                writer.transport.abort()
    except (OSError, TimeoutError):
        pass
    return float("inf")


async def victims(url: str, seconds: float) -> list[float]:
    until_s = time.monotonic() + seconds
    waits: list[float] = []

    async def client() -> None:
        while time.monotonic() < until_s:
            waits.append(await first_token_s(url))

    await asyncio.gather(*(client() for _ in range(NUM_VICTIMS)))
    return waits


async def measure(url: str, shape: Shape, seconds: float) -> dict[str, Any]:
    """Return the victim's first tokens beside one shape of the attacker."""
    command = (
        sys.executable,
        "-m",
        "tests.measure.reliability.attacks",
        "--attacker",
        url,
        "--seconds",
        str(seconds + SETTLE_S),
    )
    process = await asyncio.create_subprocess_exec(*command, shape.name, stdout=asyncio.subprocess.PIPE)
    assert process.stdout is not None
    await process.stdout.readline()  # it begins
    await asyncio.sleep(SETTLE_S)
    waits = await victims(url, seconds)
    statuses = json.loads(await process.stdout.read() or b"{}")
    await process.wait()
    return {
        "shape": shape.name,
        "num": len(waits),
        "num_failed": sum(wait == float("inf") for wait in waits),
        "p50_ms": round(1000 * percentile(waits, 0.5), 1),
        "p99_ms": round(1000 * percentile(waits, 0.99), 1),
        "answers": statuses,
    }


def server_with(*, tls: bool) -> contextlib.AbstractContextManager[RunningServer]:
    flags = [flag for key in KEYS for flag in ("--api-key", key)]
    if tls:
        flags += [flag for name, path in TLS_FILES.items() for flag in (f"--{name.replace('_', '-')}", path)]
    return start_server(*flags)


def run(shapes: list[Shape], seconds: float) -> Iterator[dict[str, Any]]:
    """Measure the shapes on a server, in order, with `fair half` before and after them."""
    if not shapes:
        return
    with server_with(tls=shapes[0].uses_tls) as server:
        url = server.url
        rows = [asyncio.run(measure(url, shape, seconds)) for shape in (HONEST, *shapes, HONEST)]
    fair_ms = (rows[0]["p99_ms"] + rows[-1]["p99_ms"]) / 2
    for row in rows:
        yield {**row, "ratio": round(row["p99_ms"] / fair_ms, 2)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shapes", nargs="*", help="names of shapes; all by default")
    parser.add_argument("--json", type=Path, help="write the rows to this file")
    parser.add_argument("--seconds", type=float, default=12.0, help="of each shape")
    parser.add_argument("--attacker", metavar="URL", help=argparse.SUPPRESS)
    options = parser.parse_args()
    chosen = [shape for shape in (HONEST, *SHAPES) if not options.shapes or shape.name in options.shapes]
    if options.attacker:
        print(flush=True)  # noqa: T201
        statuses = asyncio.run(attack(options.attacker, chosen[0], options.seconds))
        print(json.dumps(statuses), flush=True)  # noqa: T201
        return 0
    attacks = [shape for shape in chosen if shape is not HONEST]
    rows = []
    for tls in (False, True):
        for row in run([shape for shape in attacks if shape.uses_tls == tls], options.seconds):
            rows.append(row)
            sys.stdout.write(
                f"{row['ratio']:7.2f} x  p50 {row['p50_ms']:8.1f} ms  p99 {row['p99_ms']:8.1f} ms  "
                f"{row['num']:4d} ({row['num_failed']} failed)  {row['shape']}  {row['answers']}\n"
            )
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
