"""A third of many clients disconnect, in every phase and every way: the others get the same results, nothing leaks."""

import asyncio
import contextlib
import logging
import random
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from server.generation.state import ServerState
from tests.support.conditions import until
from tests.support.servers.raw_http import LEAVINGS, RawClient
from tests.support.servers.running import MODEL
from tests.support.servers.serving import outcomes
from tests.support.servers.watched import WatchedEngine, watched_server

ENGINE = {"dtype": "float32", "max_num_seqs": 24, "max_num_batched_tokens": 64, "num_kv_blocks": 100}
SHARE_OF_LEAVERS = 0.3
NUM_AT_START = 40  # requests before the first step, so that blocks run out
CHECK_INTERVAL = 5  # steps

log = logging.getLogger("smoe.chaos")


def bodies(rng: random.Random, count: int) -> list[dict[str, Any]]:
    """Return request bodies: prompts of one to ten chunks, few and many tokens."""
    return [
        {
            "model": MODEL,
            "prompt": [1, *(rng.randrange(300, 3000) for _ in range(rng.choice([2, 30, 100, 500])))],
            "max_tokens": rng.choice([1, 8, 30, 80]),
            "temperature": rng.choice([0, 0.8]),
            "seed": rng.randrange(2**62),
            "logprobs": 1,
            "ignore_eos": True,
            "return_token_ids": True,
        }
        for _ in range(count)
    ]


Result = tuple[list[int], str, list[float], str]  # token ids, text, logprobs, finish reason


def result_of(parts: list[dict[str, Any]]) -> Result:
    """Combine the parts of a response, streamed or not."""
    choices = [choice for part in parts for choice in part["choices"]]
    return (
        [token for choice in choices for token in choice["token_ids"]],
        "".join(choice["text"] for choice in choices),
        [value for choice in choices if choice["logprobs"] for value in choice["logprobs"]["token_logprobs"]],
        choices[-1]["finish_reason"],
    )


@dataclass
class Storm:
    """Many clients at once, some of which disconnect."""

    url: str
    engine: WatchedEngine
    rng: random.Random
    left: Counter[str] = field(default_factory=Counter)
    stalled: list[RawClient] = field(default_factory=list)

    async def stay(self, body: dict[str, Any]) -> Result:
        """Send a request and return its complete result."""
        streamed = self.rng.random() < 0.5
        client = await RawClient.connect(self.url)
        client.post("/v1/completions", {**body, "stream": streamed})
        answer = await client.answer()
        client.close()
        assert (answer.status, answer.is_done) == (200, True), answer.body
        return result_of(answer.events if streamed else [answer.json()])

    async def leave(self, body: dict[str, Any]) -> None:
        """Send a request and disconnect at once or some steps after it was submitted, or stop reading until the end."""
        streamed = self.rng.random() < 0.5
        how = self.rng.choice([*LEAVINGS, "stall"])
        client = await RawClient.connect(self.url, receive_bytes=4096)
        seed = self.rng.randrange(2**62)
        client.post("/v1/completions", {**body, "stream": streamed, "max_tokens": 400, "seed": seed})
        self.left[how] += 1
        if how == "stall":
            client.writer.transport.pause_reading()  # type: ignore[attr-defined]
            self.stalled.append(client)
            return
        if self.rng.random() < 0.9:
            before = await self.engine.submitted(seed)
            await self.engine.steps(self.rng.choice([0, 1, 5, 40, 150]), since=before)  # it would run for 400 steps
        with contextlib.suppress(ConnectionError):
            await client.leave(how)  # type: ignore[arg-type]


async def check_counts(engine: WatchedEngine, state: ServerState) -> None:
    """Check every few steps that received = running + waiting + all outcomes. Runs until cancelled."""
    while True:
        await engine.steps(CHECK_INTERVAL)
        values = {s.name: s.value for family in state.metrics.exposition.collect() for s in family.samples}
        open_now = values["smoe_requests_running"] + values["smoe_requests_waiting"]
        assert values["smoe_requests_received_total"] == num_ended(state) + open_now


def num_ended(state: ServerState) -> float:
    return sum(count for name, count in outcomes(state).items() if name != "received")


async def storm(url: str, engine: WatchedEngine, state: ServerState, seed: int, count: int, num_bodies: int) -> Storm:
    rng = random.Random(seed)
    known = bodies(rng, num_bodies)
    made = Storm(url, engine, rng)
    alone = [await made.stay(body) for body in known]
    assert all(len(tokens) == body["max_tokens"] for body, (tokens, *_) in zip(known, alone, strict=True))
    received = outcomes(state)["received"]
    checker = asyncio.create_task(check_counts(engine, state))
    choices = [(rng.randrange(num_bodies), rng.random() < SHARE_OF_LEAVERS) for _ in range(count)]
    clients = asyncio.gather(*(made.leave(known[i]) if leaves else made.stay(known[i]) for i, leaves in choices))
    await engine.wait_for_requests(NUM_AT_START)
    answers = await clients
    for client in made.stalled:
        await client.leave("rst")
    await engine.idle()
    assert not checker.done(), checker.result()
    checker.cancel()
    for (i, leaves), answer in zip(choices, answers, strict=True):
        assert leaves or answer == alone[i]
    num_staying = sum(not leaves for _, leaves in choices)
    assert num_staying <= outcomes(state)["received"] - received <= count, (
        "a client that disconnects at once may not be counted"
    )
    return made


def test_clients_that_stay_get_the_results_of_a_solo_run_and_nothing_leaks(scale: int) -> None:
    """60 clients; with --scale 10, 1,000 clients and five seeds."""
    for seed in range(1 if scale == 1 else 5):
        asyncio.run(run_storm(seed, *((60, 8) if scale == 1 else (100 * scale, 48))))


async def run_storm(seed: int, count: int, num_bodies: int) -> None:
    async with asyncio.timeout(1500), watched_server(**ENGINE) as (url, engine, state, connections):
        made = await storm(url, engine, state, seed, count, num_bodies)
        await until(lambda: num_ended(state) == outcomes(state)["received"])  # the server sees the last ones leave
        ended = outcomes(state)
        log.info(
            "seed %d: %s; left by %s; %d steps, %d preemptions; computed after the abort: %d of %d",
            seed, ended, dict(made.left), engine.num_steps, engine.num_preemptions,
            len(engine.computed_after_abort), len(engine.aborted),
        )  # fmt: skip
        assert set(ended) == {"received", "length", "abort"}
        assert engine.num_preemptions
        assert engine.aborted and not engine.computed_after_abort, "the engine computed more than the step in flight"
        assert state.admission.num_tokens == 0
        assert engine.stats.num_running == engine.stats.num_waiting == 0
        while len(connections):
            await asyncio.wait([asyncio.create_task(asyncio.sleep(0))])
