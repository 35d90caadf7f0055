"""Kill and stop the engine process, and end the server, while streams run: real processes, the bundled model.

Every complete stream has the tokens of a solo run. `make test` repeats a kill twice and the others once; `--scale 10`
repeats each 20 times. With -s the figures are printed.
"""

import asyncio
import json
import os
import random
import re
import signal
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest

from tests.support.conditions import POLL_S
from tests.support.servers.running import MODEL, RunningServer, forked_server, samples

NUM_STREAMS, NUM_SEQS = 24, 6  # most of the streams are queued at any time
NUM_DRAINED = 200
PROMPTS = ("It was not in her power to", "In the beginning", "def main(", "A woman's heart", "import os\n")


@dataclass
class Answer:
    """The result of one request."""

    status: int = 0
    token_ids: list[int] = field(default_factory=list)
    finish_reason: str | None = None
    error: dict[str, Any] | None = None
    is_done: bool = False
    headers: httpx.Headers = field(default_factory=httpx.Headers)
    ended_s: float = 0.0

    @property
    def has_one_end(self) -> bool:
        """True if it ended with either a finish reason or an error, followed by [DONE]."""
        return self.is_done and (self.finish_reason is None) != (self.error is None)


class Progress:
    """Counts the tokens of all streams; sets `reached` after `goal` tokens."""

    def __init__(self, goal: int) -> None:
        self._left = goal
        self.reached = asyncio.Event()

    def add(self, num_tokens: int) -> None:
        self._left -= num_tokens
        if self._left <= 0:
            self.reached.set()


def body_of(number: int, max_tokens: int) -> dict[str, object]:
    """Return request `number`: greedy or sampled, with its own prompt and seed."""
    prompt = f"{PROMPTS[number % len(PROMPTS)]} {number}"
    temperature = 0.0 if number % 3 == 0 else 0.9
    return {
        "model": MODEL, "prompt": prompt, "max_tokens": max_tokens, "temperature": temperature, "seed": number,
        "ignore_eos": True, "stream": True, "return_token_ids": True,
    }  # fmt: skip


async def ask(
    client: httpx.AsyncClient,
    body: dict[str, object],
    progress: Progress | None = None,
    started: asyncio.Event | None = None,
) -> Answer:
    answer = Answer()
    async with client.stream("POST", "/v1/completions", json=body) as reply:
        answer.status, answer.headers = reply.status_code, reply.headers
        if started is not None:
            started.set()
        if reply.status_code != 200:
            answer.error = json.loads(await reply.aread())["error"]
            return answer
        async for line in reply.aiter_lines():
            assert not (line and answer.is_done), "data after [DONE]"
            if line == "data: [DONE]":
                answer.is_done = True
            elif line.startswith("data: "):
                add_event(answer, json.loads(line[6:]), progress)
    answer.ended_s = time.monotonic()
    return answer


def add_event(answer: Answer, event: dict[str, Any], progress: Progress | None) -> None:
    assert answer.error is None and answer.finish_reason is None, "an event after the end"
    if "error" in event:
        answer.error = event["error"]
        return
    [choice] = event["choices"]
    new = choice.get("token_ids") or []
    answer.token_ids += new
    answer.finish_reason = choice["finish_reason"]
    if progress is not None:
        progress.add(len(new))


@asynccontextmanager
async def client_of(server: RunningServer) -> AsyncIterator[httpx.AsyncClient]:
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)
    async with httpx.AsyncClient(base_url=server.url, timeout=120, limits=limits) as client:
        yield client


async def health(client: httpx.AsyncClient, status: int) -> httpx.Response:
    """Request /health until it has this status."""
    while True:
        reply = await client.get("/health")
        if reply.status_code == status:
            return reply
        await asyncio.sleep(POLL_S)


async def answers_of(server: RunningServer, bodies: list[dict[str, object]]) -> list[Answer]:
    """Send all requests at once."""
    async with client_of(server) as client:
        return await asyncio.gather(*(ask(client, body) for body in bodies))


async def scrape(client: httpx.AsyncClient) -> None:
    """Check until cancelled that every scrape has received = running + waiting + all outcomes, and that no counter
    decreases."""
    before: dict[Any, float] = {}
    text = ""
    while True:
        newer = (await client.get("/metrics")).text
        if newer == text:  # rendered once a second
            await asyncio.sleep(POLL_S)
            continue
        text, values = newer, samples(newer)
        ended = sum(value for (name, _), value in values.items() if name == "smoe_requests_total")
        open_ones = values["smoe_requests_running", ()] + values["smoe_requests_waiting", ()]
        assert values["smoe_requests_received_total", ()] == open_ones + ended
        counters = {key: value for key, value in values.items() if key[0].endswith("_total")}
        assert all(counters[key] >= value for key, value in before.items()), "a counter decreased"
        before = counters


@pytest.fixture(scope="module")
def server() -> Iterator[RunningServer]:
    with forked_server("--dtype", "float32", "--threads", "1", "--max-num-seqs", str(NUM_SEQS)) as running:
        yield running


@pytest.fixture(scope="module")
def bodies() -> list[dict[str, object]]:
    return [body_of(number, max_tokens=20 + 7 * (number % 9)) for number in range(NUM_STREAMS)]


@pytest.fixture(scope="module")
def solo(server: RunningServer, bodies: list[dict[str, object]]) -> list[list[int]]:
    """The tokens of each request in a solo run."""

    async def one_by_one() -> list[list[int]]:
        async with client_of(server) as client:
            return [(await ask(client, body)).token_ids for body in bodies]

    return asyncio.run(one_by_one())


def restarts(server: RunningServer) -> float:
    return server.settled_metrics()["smoe_engine_restarts_total", ()]


def test_a_killed_engine_ends_streams_with_output_and_the_others_equal_their_solo_runs(
    server: RunningServer, bodies: list[dict[str, object]], solo: list[list[int]], scale: int
) -> None:
    chance, late_s, kept, num_kills, num_cutting = random.Random(0), [], 0, 0, 0
    before, api_pid = restarts(server), server.process.pid
    fingerprint = server.complete("a", max_tokens=1).json()["system_fingerprint"]
    while num_cutting < 2 * scale:  # on a fast machine all streams may have ended before the kill
        assert num_kills < 20 * scale, "no kill happened before all streams had ended"
        killed_s, answers = asyncio.run(kill_under_load(server, bodies, chance.randint(1, 300)))
        num_kills += 1
        num_cutting += any(answer.error is not None for answer in answers)
        for answer, alone in zip(answers, solo, strict=True):
            assert answer.status == 200 and answer.has_one_end
            if answer.error is None:
                assert answer.token_ids == alone
                kept += 1
            else:
                assert answer.error["code"] == "engine_dead"
                assert 0 < len(answer.token_ids) < len(alone), "a stream without output was not sent again"
                assert answer.token_ids == alone[: len(answer.token_ids)]
                late_s.append(answer.ended_s - killed_s)
    assert kept, "no stream was kept"
    assert restarts(server) == before + num_kills
    assert server.process.poll() is None and server.process.pid == api_pid
    assert server.complete("a", max_tokens=1).json()["system_fingerprint"] == fingerprint
    sys.stdout.write(
        f"{num_kills} kills: {len(late_s)} streams cut, the last after {max(late_s):.2f} s; {kept} complete\n"
    )


async def kill_under_load(
    server: RunningServer, bodies: list[dict[str, object]], num_tokens: int, victim: int | None = None
) -> tuple[float, list[Answer]]:
    """Send all requests at once, kill `victim` (the engine) after `num_tokens` tokens, wait until it is ready again.

    Returns when the process was killed, and what became of the requests.
    """
    async with client_of(server) as client:
        await health(client, 200)
        scraper = asyncio.create_task(scrape(client))
        progress = Progress(num_tokens)
        streams = [asyncio.create_task(ask(client, body, progress)) for body in bodies]
        await progress.reached.wait()
        killed_s = time.monotonic()
        os.kill(victim or server.engine_pid, signal.SIGKILL)
        down = await health(client, 503)
        assert down.json()["phase"] == "restarting"
        assert (await client.get("/health/live")).status_code == 200
        answers = await asyncio.gather(*streams)
        await health(client, 200)
        assert not scraper.done(), scraper.exception()
        scraper.cancel()
        return killed_s, answers


def test_a_stopped_engine_is_reported_and_continues_without_loss(
    server: RunningServer, bodies: list[dict[str, object]], solo: list[list[int]], scale: int
) -> None:
    before, reported_s = restarts(server), []
    for _ in range(1 if scale == 1 else 2 * scale):
        after_s, answers = asyncio.run(stop_under_load(server, bodies))
        reported_s.append(after_s)
        assert [answer.token_ids for answer in answers] == solo
        assert all(answer.has_one_end and answer.error is None for answer in answers)
    assert restarts(server) == before
    sys.stdout.write(f"{len(reported_s)} stops: 503 after {min(reported_s):.2f} to {max(reported_s):.2f} s\n")


async def stop_under_load(server: RunningServer, bodies: list[dict[str, object]]) -> tuple[float, list[Answer]]:
    async with client_of(server) as client:
        await health(client, 200)
        progress = Progress(100)
        streams = [asyncio.create_task(ask(client, body, progress)) for body in bodies]
        await progress.reached.wait()
        stopped_s = time.monotonic()
        with server.engine_stopped():
            down = await health(client, 503)
            after_s = time.monotonic() - stopped_s
            assert down.json()["phase"] == "stuck"
            assert (await client.get("/health/live")).status_code == 503
            refused = await ask(client, bodies[0])
            assert refused.status == 503 and int(refused.headers["retry-after"]) > 0
        await health(client, 200)
        return after_s, await asyncio.gather(*streams)


def test_at_sigterm_under_200_streams_each_of_them_ends_and_the_exit_code_is_0(scale: int) -> None:
    """Half of the streams take longer than the shutdown timeout."""
    for number in range(1 if scale == 1 else 2 * scale):
        flags = ("--dtype", "float32", "--threads", "1", "--shutdown-timeout", "6")
        with forked_server(*flags) as server:
            took_s, answers, refused = asyncio.run(drain(server, random.Random(number).randint(1, 400)))
            log = server.log.read_text()
        assert all(answer.status == 200 and answer.has_one_end for answer in answers), "a stream without an end"
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "draining")
        assert int(refused.headers["retry-after"]) > 0
        outcomes = re.findall(r"outcome=(\w+)", log)
        cut = [answer.error for answer in answers if answer.error is not None]
        assert {error["code"] for error in cut} == {"draining"}
        num_cut = len(cut)
        assert num_cut, "every stream ended in time"
        assert sorted(outcomes) == ["error"] * num_cut + ["length"] * (NUM_DRAINED - num_cut) + ["rejected"]
        sys.stdout.write(f"{NUM_DRAINED} streams: {num_cut} cut at the timeout, exit after {took_s:.2f} s\n")


async def drain(server: RunningServer, num_tokens: int) -> tuple[float, list[Answer], httpx.Response]:
    async with client_of(server) as client:
        progress = Progress(num_tokens)
        long = {"max_tokens": 1900}
        bodies = [body_of(number, max_tokens=8) | (long if number % 2 else {}) for number in range(NUM_DRAINED)]
        started = [asyncio.Event() for _ in bodies]  # every stream has begun before the signal, even on a busy machine
        pairs = zip(bodies, started, strict=True)
        streams = [asyncio.create_task(ask(client, body, progress, event)) for body, event in pairs]
        await asyncio.gather(progress.reached.wait(), *(event.wait() for event in started))
        sent_s, refused = await asyncio.to_thread(sigterm, server, bodies[0])
        answers = await asyncio.gather(*streams)
        assert await asyncio.to_thread(server.process.wait, 60) == 0
        return time.monotonic() - sent_s, answers, refused


def sigterm(server: RunningServer, body: dict[str, object]) -> tuple[float, httpx.Response]:
    """Send SIGTERM; return the time of it and the response to a request sent while the server drains.

    Call it in a thread, because the event loop is busy with 200 streams.
    """
    with httpx.Client(base_url=server.url, timeout=60) as client:
        assert client.get("/health").status_code == 200
        sent_s = time.monotonic()
        server.sigterm()
        while (ready := client.get("/health")).status_code == 200:
            pass
        assert ready.json()["phase"] == "draining"
        return sent_s, client.post("/v1/completions", json=body)
