"""python -m tests.measure.reliability.kills [--kills N] [--connections N] [--queue N]

Kill the engine of a server again and again while many connections wait, the queue is full and all of it is over TLS.
Print how every request ended. The bundled model. Exit code 1 if a request was lost or ended in silence.
"""

import argparse
import asyncio
import contextlib
import os
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import httpx

from tests.support.conditions import until
from tests.support.servers.endings import CLOSED, LOST, NO_CONNECTION, SILENT, connected, ending_on
from tests.support.servers.raw_http import RawClient
from tests.support.servers.running import MODEL, RunningServer, start_server
from tests.support.servers.serving import TLS_FILES

NUM_HANDSHAKES = 64  # at once: the server gives each 10 s, of which its clients here may take most
FAULTY = (CLOSED, LOST, NO_CONNECTION, SILENT)


@dataclass
class Ledger:
    """Counts of requests by their ending."""

    endings: Counter[str] = field(default_factory=Counter)
    num_kills: int = 0

    @property
    def num_faulty(self) -> int:
        """Requests that were lost, or whose end the client cannot tell from a broken network."""
        return sum(self.endings[ending] for ending in FAULTY)


def kills(num_kills: int, num_connections: int, max_queued: int) -> Ledger:
    """Run `num_kills` rounds against one server: connect, kill, wait for all ends."""
    flags = ("--dtype", "float32", "--threads", "1", "--max-num-seqs", "8", "--max-num-queued-reqs", str(max_queued))
    tls = [text for name, path in TLS_FILES.items() for text in (f"--{name.replace('_', '-')}", path)]
    ledger = Ledger()
    with start_server(*flags, *tls) as server:
        for number in range(num_kills):
            endings = asyncio.run(kill_under_load(server, num_connections, random.Random(number)))
            ledger.endings.update(endings)
            ledger.num_kills += 1
    return ledger


async def kill_under_load(server: RunningServer, num_connections: int, rng: random.Random) -> list[str]:
    """Connect, send a request on each connection, kill the engine after a random number of ends; return all ends."""
    await _until_health(server, 200)
    handshakes = asyncio.Semaphore(NUM_HANDSHAKES)

    async def connect() -> RawClient | None:
        async with handshakes:
            return await connected(server.url)

    opened = await asyncio.gather(*(connect() for _ in range(num_connections)))
    clients = [
        asyncio.ensure_future(ending_on(client, _body(rng, number))) for number, client in enumerate(opened) if client
    ]
    goal = rng.randrange(len(clients) // 2)
    await until(lambda: sum(client.done() for client in clients) >= goal)
    os.kill(server.engine_pid, signal.SIGKILL)
    return [*await asyncio.gather(*clients), *(NO_CONNECTION for client in opened if client is None)]


def _body(rng: random.Random, number: int) -> dict[str, object]:
    return {
        "model": MODEL,
        "prompt": f"The {number}th",
        "max_tokens": rng.randint(1, 60),
        "stream": True,
        "ignore_eos": True,
    }


async def _until_health(server: RunningServer, status: int) -> None:
    async with _client(server) as client:
        while (await client.get("/health")).status_code != status:
            pass


@contextlib.asynccontextmanager
async def _client(server: RunningServer) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=server.url, verify=False, timeout=120) as client:
        yield client


def main() -> int:
    """Print the ledger."""
    parser = argparse.ArgumentParser(prog="python -m tests.measure.reliability.kills")
    parser.add_argument("--kills", type=int, default=50, help="number of kills (default: %(default)s)")
    parser.add_argument("--connections", type=int, default=1500, help="per kill (default: %(default)s)")
    parser.add_argument("--queue", type=int, default=200, help="choices that may wait (default: %(default)s)")
    arguments = parser.parse_args()
    begin_s = time.monotonic()
    ledger = kills(arguments.kills, arguments.connections, arguments.queue)
    for ending, count in ledger.endings.most_common():
        sys.stdout.write(f"{ending:30s} {count:8d}\n")
    sys.stdout.write(
        f"{ledger.num_kills} kills, {ledger.endings.total()} requests, {ledger.num_faulty} without an end, "
        f"{time.monotonic() - begin_s:.0f} s\n"
    )
    return 1 if ledger.num_faulty else 0


if __name__ == "__main__":
    sys.exit(main())
