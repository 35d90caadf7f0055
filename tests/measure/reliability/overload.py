"""python -m tests.measure.reliability.overload [stalled|burst|slowloris|churn|sponge ...]

Measure the effects of overload with the bundled model. Each part starts a server of its own and prints its figures for
docs/reliability.md. Nothing is asserted, because the machine may be busy.
"""

import asyncio
import contextlib
import http.client
import itertools
import json
import os
import select
import selectors
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from typing import Any
from urllib.parse import urlsplit

import httpx
import psutil

from tests.support.servers.raw_http import RawClient
from tests.support.servers.running import MODEL, RunningServer, start_server

KEYS = ("sponge", "other")


def body(max_tokens: int, **fields: object) -> dict[str, Any]:
    return {"model": MODEL, "prompt": [1, 5, 7], "max_tokens": max_tokens, "ignore_eos": True, **fields}


def percentile(values: list[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(share * len(values)))] if values else float("nan")


def say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def rss_mib(server: RunningServer) -> float:
    return psutil.Process(server.process.pid).memory_info().rss / 2**20


def probe(url: str) -> None:
    """Request health on a new connection ten times a second until standard input ends; print the latencies."""
    parts = urlsplit(url)
    waits: list[float] = []
    while not select.select([sys.stdin], [], [], 0.1)[0]:
        start = time.monotonic()
        connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=60)
        connection.request("GET", "/health")
        status = connection.getresponse().status
        connection.close()
        waits.append(time.monotonic() - start if status == 200 else float("inf"))
    say(
        f"  health: {len(waits)} requests, p50 {1000 * percentile(waits, 0.5):.0f} ms, "
        f"p99 {1000 * percentile(waits, 0.99):.0f} ms, worst {1000 * max(waits):.0f} ms"
    )


@contextlib.contextmanager
def health_probed(server: RunningServer) -> Iterator[None]:
    """Probe health from another process inside the block, because this one is busy with thousands of clients."""
    command = [sys.executable, "-m", "tests.measure.reliability.overload", "probe", server.url]
    process = subprocess.Popen(command, stdin=subprocess.PIPE)
    yield
    process.communicate()


def exchange_all(url: str, request: bytes, count: int) -> list[tuple[int, float]]:
    """Send the request on `count` connections at once.

    Returns status and seconds from the last byte sent to the last byte read of each; status 0 without a complete
    response.
    """
    parts = urlsplit(url)
    selector = selectors.DefaultSelector()
    sent_s: dict[int, float] = {}
    read: dict[int, bytes] = {}
    answers = []
    for _ in range(count):
        client = socket.socket()
        client.setblocking(False)
        client.connect_ex((parts.hostname, parts.port))
        selector.register(client, selectors.EVENT_WRITE)
        read[client.fileno()] = b""
    while len(answers) < count:
        for key, events in selector.select():
            client, number = key.fileobj, key.fd
            try:
                if events & selectors.EVENT_WRITE:
                    client.send(request)  # type: ignore[union-attr]
                    sent_s[number] = time.monotonic()
                    selector.modify(client, selectors.EVENT_READ)
                    continue
                chunk = client.recv(1 << 16)  # type: ignore[union-attr]
            except OSError:
                chunk = b""
            read[number] += chunk
            head, _, rest = read[number].partition(b"\r\n\r\n")
            length = head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0]
            if chunk and (not length or len(rest) < int(length)):
                continue
            status = int(head.split(b" ")[1]) if chunk else 0
            answers.append((status, time.monotonic() - sent_s.get(number, time.monotonic())))
            selector.unregister(client)
            client.close()  # type: ignore[union-attr]
    return answers


async def gaps(url: str, max_tokens: int) -> list[float]:
    client = await RawClient.connect(url)
    client.post("/v1/completions", body(max_tokens, stream=True, logprobs=20))
    answer = await client.head()
    times_s = [time.monotonic() async for _ in client.events(answer)]
    client.close()
    return [after - before for before, after in itertools.pairwise(times_s)]


async def stalled(server: RunningServer) -> None:
    """Compare the token gaps of 50 clients while 50 others read and while these do not read."""
    for num_stalled in (0, 50, 0, 50):
        before = rss_mib(server)
        stuck = []
        for _ in range(num_stalled):
            client = await RawClient.connect(server.url, receive_bytes=4096)
            client.writer.transport.pause_reading()  # type: ignore[attr-defined]
            client.post("/v1/completions", body(400, stream=True, logprobs=20))
            stuck.append(client)
        results = await asyncio.gather(*(gaps(server.url, 400) for _ in range(100 - num_stalled)))
        others = [gap for one in results[:50] for gap in one]
        say(
            f"  {num_stalled} of 100 stalled: the others' gap p50 {1000 * percentile(others, 0.5):.0f} ms, p99 "
            f"{1000 * percentile(others, 0.99):.0f} ms; RSS {before:.0f} -> {rss_mib(server):.0f} MiB"
        )
        for client in stuck:
            await client.leave("rst")


async def burst(server: RunningServer, count: int = 10_000) -> None:
    """Send `count` requests at once, each on its own connection."""
    content = json.dumps(body(50)).encode()
    request = (
        b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
        b"content-length: %d\r\n\r\n" % len(content)
    ) + content

    def alone() -> float:
        return percentile([exchange_all(server.url, request, 1)[0][1] for _ in range(10)], 0.5)

    baseline = alone()
    with health_probed(server):
        start = time.monotonic()
        answers = exchange_all(server.url, request, count)
        took = time.monotonic() - start
        ended = time.monotonic()
        while (back := alone()) > 2 * baseline and time.monotonic() < ended + 60:
            pass
        recovered = time.monotonic() - ended
    rejected = [wait for status, wait in answers if status == 429]
    values = server.metrics()
    outcomes = {key[1][0][1]: value for key, value in values.items() if key[0] == "smoe_requests_total" and value}
    say(
        f"  {count} at once: {dict(Counter(status for status, _ in answers))} in {took:.1f} s; 429 after p50 "
        f"{percentile(rejected, 0.5):.2f} s, p99 {percentile(rejected, 0.99):.2f} s; alone {1000 * baseline:.0f} ms "
        f"before, {1000 * back:.0f} ms {recovered:.1f} s after; RSS {rss_mib(server):.0f} MiB; "
        f"received {values['smoe_requests_received_total', ()]:.0f} = {outcomes}"
    )


async def slowloris(server: RunningServer, count: int = 2000) -> None:
    """Keep `count` connections with incomplete heads open, reopening closed ones, while sending real requests."""
    stop = asyncio.Event()

    async def hold() -> None:
        while not stop.is_set():
            client = await RawClient.connect(server.url)
            client.writer.write(b"GET /health HTTP/1.1\r\nhost: localhost\r\n")
            with contextlib.suppress(OSError):
                async with asyncio.timeout(20):
                    await client.reader.read()
            client.close()

    attackers = [asyncio.create_task(hold()) for _ in range(count)]
    health = health_probed(server)
    async with httpx.AsyncClient(base_url=server.url, timeout=60) as client:
        waits = []
        with health:
            for _ in range(200):
                start = time.monotonic()
                assert (await client.post("/v1/completions", json=body(2))).status_code == 200
                waits.append(time.monotonic() - start)
                await asyncio.sleep(0.05)
        open_now = server.metrics()["smoe_http_connections", ()]
    stop.set()
    for task in attackers:
        task.cancel()
    await asyncio.gather(*attackers, return_exceptions=True)
    say(
        f"  {open_now:.0f} connections open; requests: p50 {1000 * percentile(waits, 0.5):.0f} ms, "
        f"p99 {1000 * percentile(waits, 0.99):.0f} ms"
    )


async def churn(server: RunningServer, count: int = 5000) -> None:
    """Open and close `count` connections."""
    process = psutil.Process(server.process.pid)
    async with httpx.AsyncClient(base_url=server.url) as client:
        await client.get("/health")
        before, start = process.num_fds(), time.monotonic()
        for _ in range(count):
            (await RawClient.connect(server.url)).writer.transport.abort()
        await client.get("/health")
        took = time.monotonic() - start
        while process.num_fds() > before and time.monotonic() < start + took + 10:
            await client.get("/health")
        say(f"  {count} opened and closed in {took:.1f} s: {before} descriptors before, {process.num_fds()} after")


async def sponge(server: RunningServer) -> None:
    """Measure one key's short requests while another key sends four times as many long ones as can run."""

    async def first_token_s(key: str) -> float:
        client = await RawClient.connect(server.url)
        start = time.monotonic()
        client.post("/v1/completions", body(4, stream=True), {"authorization": f"Bearer {key}"})
        answer = await client.head()
        assert answer.status == 200
        await client.reader.readuntil(b"data: ")
        first = time.monotonic() - start
        async for _ in client.events(answer):
            pass
        client.close()
        return first

    quiet = [await first_token_s(KEYS[1]) for _ in range(10)]
    reading, clients = [], []
    for _ in range(4 * 32):
        client = await RawClient.connect(server.url)
        client.post("/v1/completions", body(2000, stream=True), {"authorization": f"Bearer {KEYS[0]}"})
        clients.append(client)
        reading.append(asyncio.create_task(client.reader.read()))
    async with httpx.AsyncClient(headers={"authorization": f"Bearer {KEYS[0]}"}) as client_of_sponge:
        load: dict[str, int] = {"running": 0}
        while load["running"] < 28:  # the limit of one key
            load = (await client_of_sponge.get(server.url + "/load")).json()
    loaded = [await first_token_s(KEYS[1]) for _ in range(20)]
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(120):
            own = [await first_token_s(KEYS[0])]
    say(
        f"  another key's time to first token: quiet p50 {1000 * percentile(quiet, 0.5):.0f} ms; with the sponge p50 "
        f"{1000 * percentile(loaded, 0.5):.0f} ms, worst {1000 * max(loaded):.0f} ms; the sponge's own next: "
        + (f"{own[0]:.0f} s" if "own" in locals() else "not within 120 s")
        + f" ({load})"
    )
    for client in clients:
        client.close()
    for task in reading:
        task.cancel()
    await asyncio.gather(*reading, return_exceptions=True)


PARTS: dict[str, tuple[Callable[[RunningServer], Awaitable[None]], tuple[str, ...]]] = {
    "stalled": (stalled, ()),
    "burst": (burst, ("--max-num-queued-reqs", "256")),
    "slowloris": (slowloris, ()),
    "churn": (churn, ()),
    "sponge": (sponge, ("--max-num-seqs", "32", *(flag for key in KEYS for flag in ("--api-key", key)))),
}


def main() -> None:
    if sys.argv[1:2] == ["probe"]:
        probe(sys.argv[2])
        return
    for name in sys.argv[1:] or PARTS:
        part, flags = PARTS[name]
        say(f"{name} (load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores)")
        with start_server("--threads", "1", *flags) as server:
            asyncio.run(part(server))  # type: ignore[arg-type]


if __name__ == "__main__":
    main()
