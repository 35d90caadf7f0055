"""A third of many clients leave, in every phase and in every way: the others notice nothing, and nothing is left."""

import asyncio
import contextlib
import logging
import random
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from server.generation.state import ServerState
from tests.support.raw_http import LEAVINGS, RawClient
from tests.support.running import MODEL
from tests.support.serving import outcomes
from tests.support.watched import WatchedEngine, watched_server

ENGINE = {"dtype": "float32", "max_num_seqs": 24, "max_num_batched_tokens": 64, "num_kv_blocks": 100}
SHARE_THAT_LEAVES = 0.3
CROWD = 40  # are there before the first step, so that blocks run short
LEDGER_EVERY = 5  # steps

log = logging.getLogger("smoe.chaos")


def bodies(rng: random.Random, count: int) -> list[dict[str, Any]]:
    """Prompts of one chunk and of ten, few tokens and many."""
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


Told = tuple[list[int], str, list[float], str]  # token ids, text, logprobs, why it ended


def told(parts: list[dict[str, Any]]) -> Told:
    """What an answer says, whole or in parts."""
    choices = [choice for part in parts for choice in part["choices"]]
    return (
        [token for choice in choices for token in choice["token_ids"]],
        "".join(choice["text"] for choice in choices),
        [value for choice in choices if choice["logprobs"] for value in choice["logprobs"]["token_logprobs"]],
        choices[-1]["finish_reason"],
    )


@dataclass
class Storm:
    """Many clients at once, some of which leave."""

    url: str
    engine: WatchedEngine
    rng: random.Random
    left: Counter[str] = field(default_factory=Counter)
    stalled: list[RawClient] = field(default_factory=list)

    async def asks(self, body: dict[str, Any]) -> Told:
        """Stays to the end."""
        streamed = self.rng.random() < 0.5
        client = await RawClient.connect(self.url)
        client.post("/v1/completions", {**body, "stream": streamed})
        answer = await client.answer()
        client.close()
        assert (answer.status, answer.is_done) == (200, True), answer.body
        return told(answer.events if streamed else [answer.json()])

    async def leaves(self, body: dict[str, Any]) -> None:
        """At once, or some steps after its request is with the engine; or it stops reading and goes in the end."""
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
            await self.engine.steps(self.rng.choice([0, 1, 5, 40, 150]), since=before)  # its own are 400
        with contextlib.suppress(ConnectionError):
            await client.leave(how)  # type: ignore[arg-type]


async def check_ledger(engine: WatchedEngine, state: ServerState) -> None:
    """Every few steps, until it is cancelled: received = running + waiting + all outcomes."""
    while True:
        await engine.steps(LEDGER_EVERY)
        values = {s.name: s.value for family in state.metrics.exposition.collect() for s in family.samples}
        ended = sum(count for name, count in outcomes(state).items() if name != "received")
        open_now = values["smoe_requests_running"] + values["smoe_requests_waiting"]
        assert values["smoe_requests_received_total"] == ended + open_now


async def storm(url: str, engine: WatchedEngine, state: ServerState, seed: int, count: int, num_bodies: int) -> Storm:
    rng = random.Random(seed)
    known = bodies(rng, num_bodies)
    made = Storm(url, engine, rng)
    alone = [await made.asks(body) for body in known]
    assert all(len(tokens) == body["max_tokens"] for body, (tokens, *_) in zip(known, alone, strict=True))
    received = outcomes(state)["received"]
    ledger = asyncio.create_task(check_ledger(engine, state))
    choices = [(rng.randrange(num_bodies), rng.random() < SHARE_THAT_LEAVES) for _ in range(count)]
    clients = asyncio.gather(*(made.leaves(known[i]) if goes else made.asks(known[i]) for i, goes in choices))
    await engine.begins_with(CROWD)
    answers = await clients
    for client in made.stalled:
        await client.leave("rst")
    await engine.idle()
    assert not ledger.done(), ledger.result()
    ledger.cancel()
    for (i, goes), answer in zip(choices, answers, strict=True):
        assert goes or answer == alone[i]
    num_staying = sum(not goes for _, goes in choices)
    assert num_staying <= outcomes(state)["received"] - received <= count, "who leaves at once may never be heard"
    return made


def test_those_who_stay_get_what_they_get_alone_and_nothing_of_the_others_is_left(scale: int) -> None:
    """60 clients, or 1,000 with five seeds."""
    for seed in range(1 if scale == 1 else 5):
        asyncio.run(survived(seed, *((60, 8) if scale == 1 else (100 * scale, 48))))


async def survived(seed: int, count: int, num_bodies: int) -> None:
    async with asyncio.timeout(1500), watched_server(**ENGINE) as (url, engine, state, connections):
        made = await storm(url, engine, state, seed, count, num_bodies)
        ended = outcomes(state)
        log.info(
            "seed %d: %s; left by %s; %d steps, %d preemptions; computed in vain: %d of %d",
            seed, ended, dict(made.left), engine.num_steps, engine.num_preemptions,
            len(engine.computed_in_vain), len(engine.aborted),
        )  # fmt: skip
        assert ended.pop("received") == sum(ended.values())
        assert set(ended) == {"length", "abort"}
        assert engine.num_preemptions
        assert engine.aborted and not engine.computed_in_vain, "the step in flight was not the last one"
        assert state.admission.num_tokens == 0
        assert engine.stats.num_running == engine.stats.num_waiting == 0
        while len(connections):
            await asyncio.wait([asyncio.create_task(asyncio.sleep(0))])
