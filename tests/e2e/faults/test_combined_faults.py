"""Faults in combination: every pair of them, on and off, occurs in six runs of a server. Every request ends once.

Some requests are answered at once, others stay in the engine's queue until the server ends (fake_engine_process.py).
"""

import asyncio
import contextlib
import os
import re
import signal
import socket
from collections import Counter
from pathlib import Path

import httpx
import pytest

from tests.support.conditions import until
from tests.support.pairwise import NUM_RUNS, assert_all_pairs, chosen
from tests.support.paths import DEMO
from tests.support.servers.endings import CLOSED, NO_CONNECTION, ending_of
from tests.support.servers.fake_engine_process import QUEUES
from tests.support.servers.server_process import Server, forked
from tests.support.servers.serving import TLS_FILES

KILL, STOP, FULL_DESCRIPTORS, FULL_QUEUE = "engine killed", "engine stopped", "descriptors used up", "queue full"
DRAIN, TLS, OTHER_CHECKPOINT = "drain meanwhile", "TLS", "other checkpoint"
FAULTS = (KILL, STOP, FULL_DESCRIPTORS, FULL_QUEUE, DRAIN, TLS, OTHER_CHECKPOINT)
NUM_HELD, NUM_ANSWERED, MAX_QUEUED, MAX_FILES = 16, 8, 8, 64
HELD = {"model": "m", "prompt": [5, QUEUES], "max_tokens": 4, "stream": True}
ANSWERED = {"model": "m", "prompt": [5, 6, 7], "max_tokens": 4, "stream": True}


def test_every_pair_of_faults_occurs_in_every_combination() -> None:
    assert_all_pairs(FAULTS)


@pytest.mark.parametrize("run", range(NUM_RUNS), ids=lambda run: ", ".join(sorted(chosen(run, FAULTS))) or "no fault")
def test_every_request_ends_once(run: int, tmp_path: Path) -> None:
    faults = chosen(run, FAULTS)
    mode = f"then-replaced:{tmp_path / 'started'}" if OTHER_CHECKPOINT in faults else "count"
    flags = {"shutdown_timeout": "0.5", "without_delays": "yes"}
    flags |= {"max_num_queued_reqs": str(MAX_QUEUED)} if FULL_QUEUE in faults else {}
    flags |= TLS_FILES if TLS in faults else {}
    max_files = MAX_FILES if FULL_DESCRIPTORS in faults else 0
    with forked(mode, DEMO, max_files=max_files, **flags) as server:
        server.wait_ready()
        endings = asyncio.run(Run(server, faults).endings())
        assert server.process.stderr is not None
        log = server.process.stderr.read()
    assert set(endings) <= allowed(faults), Counter(endings)
    outcomes = Counter(re.findall(r"request finished request_id=(client-\d+) .*outcome=", log))
    assert set(outcomes.values()) == {1}, "a request has two outcomes"
    assert server.exit_code() in ({0, 1} if {KILL, OTHER_CHECKPOINT} <= faults else {0})


def allowed(faults: frozenset[str]) -> set[str]:
    """Return the ends that a request may have. Held ones are cut when the server ends."""
    ends = {"complete", "error event draining", "503 draining"}
    if faults & {KILL, STOP}:
        ends |= {"503 engine_dead", "error event engine_dead"}
    if FULL_QUEUE in faults:
        ends |= {"429 queue_full"}
    if FULL_DESCRIPTORS in faults or DRAIN in faults or {KILL, OTHER_CHECKPOINT} <= faults:  # the server may have ended
        ends |= {CLOSED, NO_CONNECTION}
    return ends


class Run:
    """One run: clients before and after the faults."""

    def __init__(self, server: Server, faults: frozenset[str]) -> None:
        self._server, self._url, self._faults = server, server.url, faults
        self._clients: list[asyncio.Task[str]] = []

    async def endings(self) -> list[str]:
        """Carry out the run; return how each request ended."""
        idle = self._idle_connections()
        self._ask(HELD, NUM_HELD)
        first = self._ask(ANSWERED, NUM_ANSWERED)
        await until(lambda: all(client.done() for client in first))
        await self._until_inside()
        engine_pid = self._server.engine_pid
        if DRAIN in self._faults:
            self._server.process.terminate()
        if STOP in self._faults:
            self._signal(engine_pid, signal.SIGSTOP)
        if KILL in self._faults:
            self._signal(engine_pid, signal.SIGKILL)
        second = self._ask(ANSWERED, NUM_ANSWERED)
        if STOP in self._faults:
            self._signal(engine_pid, signal.SIGCONT)
        if DRAIN not in self._faults and not {KILL, OTHER_CHECKPOINT} <= self._faults:
            await until(lambda: all(client.done() for client in second))
            await self._until_inside()
            self._server.process.terminate()
        ends = await asyncio.gather(*self._clients)
        await asyncio.to_thread(self._server.process.wait, 60)
        for connection in idle:
            connection.close()
        return ends

    def _ask(self, body: object, count: int) -> list["asyncio.Task[str]"]:
        numbers = range(len(self._clients), len(self._clients) + count)
        tasks = [
            asyncio.ensure_future(ending_of(self._url, body, {"x-request-id": f"client-{number}"}))
            for number in numbers
        ]
        self._clients += tasks
        return tasks

    def _idle_connections(self) -> list[socket.socket]:
        """Use up the server's descriptors with connections that never finish a request."""
        if FULL_DESCRIPTORS not in self._faults:
            return []
        address = "127.0.0.1", int(self._url.rsplit(":", 1)[1])
        connections = [socket.create_connection(address, timeout=60) for _ in range(2 * MAX_FILES)]
        for connection in connections:
            connection.sendall(b"GET / HTTP/1.1\r\n")
        return connections

    async def _until_inside(self) -> None:
        """Wait until the server has read every request that has not ended."""
        while not self._has_ended:
            if await self._load() == sum(not client.done() for client in self._clients):
                return

    async def _load(self) -> int:
        try:
            async with httpx.AsyncClient(verify=False, timeout=60) as client:
                load: int = (await client.get(f"{self._url}/load")).json()["server_load"]
                return load
        except httpx.TransportError:
            return -1  # its connection was closed for another one

    @property
    def _has_ended(self) -> bool:
        return self._server.process.poll() is not None

    def _signal(self, engine_pid: int, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):  # it has ended
            os.kill(engine_pid, number)
