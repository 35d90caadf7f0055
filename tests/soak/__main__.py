"""python -m tests.soak [--minutes 60] [--clients 24] [--seed 0]

Start a server with the bundled model and run good and bad clients against it. Prints a line per minute: memory of both
processes, descriptors, tasks, connections, blocks, choices by outcome. At the end it waits until nothing runs and
prints the slopes after the warm-up. Exit code 1 if a check failed.
"""

import argparse
import asyncio
import random
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import psutil
from prometheus_client.parser import text_string_to_metric_families

from tests.soak.clients import Clients
from tests.support.servers.child_processes import engine_pid_of
from tests.support.servers.running import MODEL, RunningServer, start_server

KEYS = ["soak-one", "soak-two", "soak-three"]
FLAGS = ("--dtype", "float32", "--threads", "1", "--num-kv-blocks", "150", "--max-num-seqs", "32")
WARM_UP = 1 / 4  # of the time
SCRAPE_S = 0.5
MAX_MIB_PER_HOUR = 5.0


@dataclass(frozen=True)
class Sample:
    """The numbers of one minute."""

    minute: float
    server_mib: float
    engine_mib: float
    server_fds: float
    engine_fds: float
    tasks: float
    connections: float
    blocks: float
    waiting: float


class Watcher:
    """Scrapes the metrics, checks that each scrape adds up, and requests health."""

    def __init__(self, server: RunningServer, clients: Clients) -> None:
        self.samples: list[Sample] = []
        self.num_scrapes = 0
        self.health_s: list[float] = []
        self._clients = clients
        self._started_s = time.monotonic()
        self._http = httpx.AsyncClient(
            base_url=server.url, timeout=60, limits=httpx.Limits(max_keepalive_connections=0)
        )
        self._process = psutil.Process(server.process.pid)

    async def scrape(self) -> dict[tuple[str, str], float]:
        """Return sample values by name and outcome."""
        start = time.monotonic()
        assert (await self._http.get("/health")).status_code == 200, "health is not 200"
        self.health_s.append(time.monotonic() - start)
        text = (await self._http.get("/metrics")).text
        self.num_scrapes += 1
        families = text_string_to_metric_families(text)
        return {(s.name, s.labels.get("outcome", "")): s.value for family in families for s in family.samples}

    def check(self, values: dict[tuple[str, str], float]) -> None:
        ended = sum(value for (name, _), value in values.items() if name == "smoe_requests_total")
        open_now = values["smoe_requests_running", ""] + values["smoe_requests_waiting", ""]
        if values["smoe_requests_received_total", ""] != ended + open_now:
            self._clients.tally.fault("received is not running + waiting + all outcomes")

    async def watch(self, stop: asyncio.Event) -> None:
        """Scrape until `stop` is set; print a line per minute."""
        next_s = time.monotonic() + 60
        while not stop.is_set():
            await asyncio.wait([asyncio.create_task(stop.wait())], timeout=SCRAPE_S)
            try:
                values = await self.scrape()
            except (httpx.TransportError, AssertionError) as error:
                self._clients.tally.fault(f"scrape: {type(error).__name__} {error}")
                continue
            self.check(values)
            if time.monotonic() >= next_s:
                next_s += 60
                self.line(values)

    def line(self, values: dict[tuple[str, str], float]) -> None:
        engine = psutil.Process(engine_pid_of(self._process.pid))
        sample = Sample(
            (time.monotonic() - self._started_s) / 60,
            self._process.memory_info().rss / 2**20,
            engine.memory_info().rss / 2**20,
            self._process.num_fds(),
            engine.num_fds(),
            values["smoe_event_loop_tasks", ""],
            values["smoe_http_connections", ""],
            values["smoe_kv_cache_usage_ratio", ""],
            values["smoe_requests_waiting", ""],
        )
        self.samples.append(sample)
        outcomes = {key[1]: int(value) for key, value in values.items() if key[0] == "smoe_requests_total" and value}
        health_ms = 1000 * sorted(self.health_s)[int(0.99 * len(self.health_s))]
        self.health_s.clear()
        say(
            f"{sample.minute:5.1f} min  RSS {sample.server_mib:.1f} + {sample.engine_mib:.1f} MiB  "
            f"fds {sample.server_fds:.0f} + {sample.engine_fds:.0f}  tasks {sample.tasks:.0f}  "
            f"connections {sample.connections:.0f}  blocks {sample.blocks:.2f}  waiting {sample.waiting:.0f}  "
            f"preemptions {values['smoe_preemptions_total', '']:.0f}  received "
            f"{values['smoe_requests_received_total', '']:.0f} = {outcomes}  health p99 {health_ms:.0f} ms  "
            f"faults {len(self._clients.tally.faults)}"
        )


def slopes(samples: list[Sample]) -> Iterator[tuple[str, float]]:
    """Yield the slope per hour of each number, by least squares over the samples after the warm-up."""
    kept = samples[int(len(samples) * WARM_UP) :]
    if len(kept) < 3:
        return
    mean_x = sum(sample.minute for sample in kept) / len(kept)
    spread = sum((sample.minute - mean_x) ** 2 for sample in kept)
    for name in ("server_mib", "engine_mib", "server_fds", "engine_fds", "tasks", "connections"):
        moment = sum((sample.minute - mean_x) * getattr(sample, name) for sample in kept)
        yield name, 60 * moment / spread


def solo_runs(server: RunningServer, rng: random.Random) -> list[tuple[dict[str, Any], list[int]]]:
    """Return requests, and the tokens of each while nothing else runs."""
    bodies = [
        {
            "model": MODEL,
            "prompt": [1, *(rng.randrange(300, 3000) for _ in range(rng.choice([3, 20, 100, 600])))],
            "max_tokens": rng.choice([1, 5, 20, 60, 150]),
            "temperature": rng.choice([0, 0.8]),
            "seed": rng.randrange(2**62),
            "ignore_eos": True,
            "return_token_ids": True,
        }
        for _ in range(24)
    ]
    return [(body, ask(server, body)) for body in bodies]


def ask(server: RunningServer, body: dict[str, Any]) -> list[int]:
    headers = {"authorization": f"Bearer {KEYS[1]}"}
    reply = server.post("/v1/completions", body, headers=headers).json()
    ids: list[int] = reply["choices"][0]["token_ids"]
    return ids


async def run_clients(
    server: RunningServer, clients: Clients, watcher: Watcher, minutes: float, num_clients: int
) -> None:
    stop = asyncio.Event()
    tasks = [asyncio.create_task(clients.play(stop)) for _ in range(num_clients)]
    tasks.append(asyncio.create_task(watcher.watch(stop)))
    await asyncio.wait(tasks, timeout=60 * minutes, return_when=asyncio.FIRST_EXCEPTION)
    stop.set()
    await asyncio.gather(*tasks)
    deadline_s = time.monotonic() + 120
    while (values := await watcher.scrape())["smoe_kv_cache_usage_ratio", ""] or values["smoe_requests_waiting", ""]:
        if time.monotonic() > deadline_s:
            clients.tally.fault("blocks or requests are left")
            return
        await asyncio.sleep(2)
    watcher.check(values)


def say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.soak")
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--clients", type=int, default=24)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    keys = [flag for key in KEYS for flag in ("--api-key", key)]
    with start_server(*FLAGS, *keys) as server:
        solo = solo_runs(server, random.Random(given.seed))
        clients = Clients(server.url, KEYS, solo, given.seed)
        watcher = Watcher(server, clients)
        asyncio.run(run_clients(server, clients, watcher, given.minutes, given.clients))
        changed = sum(ask(server, body) != tokens for body, tokens in solo)
        tally = clients.tally
        say(f"actions {dict(tally.actions)}")
        say(
            f"statuses {dict(tally.statuses)}; {watcher.num_scrapes} scrapes; {changed} of {len(solo)} canaries changed"
        )
        if "Traceback" in server.log.read_text():
            tally.fault("the server's log contains a traceback")
        for fault in tally.faults[:20]:
            say(f"FAULT {fault}")
        blocked = [line for line in server.log.read_text().splitlines() if "the event loop was blocked" in line]
        say("\n".join([f"{len(blocked)} blockages of the event loop", *blocked[:20]]))
        per_hour = dict(slopes(watcher.samples))
        say("slopes per hour: " + ", ".join(f"{name} {value:+.2f}" for name, value in per_hour.items()))
        steep = [name for name in ("server_mib", "engine_mib") if per_hour.get(name, 0) > MAX_MIB_PER_HOUR]
        say("FAILED" if tally.faults or changed or steep else "passed")
        return 1 if tally.faults or changed or steep else 0


if __name__ == "__main__":
    sys.exit(main())
