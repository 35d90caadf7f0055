"""Serve B's requests alone and beside A's, and compare B's replies."""

import asyncio
import contextlib
import random
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from server.lifecycle.text_frontend import load_texts
from server.settings.settings import Settings
from tests.noninterference.calls import Attack, Call, Prompts, attack_of_a, call_of_b
from tests.noninterference.engine import InProcessEngine
from tests.noninterference.replies import Comparable, comparable
from tests.noninterference.server import KEYS, serving, state_around
from tests.support.paths import ROOT
from tests.support.servers.inline_sandbox import InlineSandbox
from tests.support.servers.raw_http import RawClient

MODEL_DIR = ROOT / "model" / "demo"
KEY_OF_A, KEY_OF_B = KEYS
NUM_CALLS, NUM_CONNECTIONS = 3, 4  # of B, one after the other; of A, at once
END_S = 60.0  # far more than any wait takes
COMMON: dict[str, Any] = {
    "dtype": "float32",
    "threads": 1,
    "num_tenants": len(KEYS),
    "max_model_len": 1024,
    "num_kv_blocks": 4096,  # A evicts nothing of B's
}
LOADS: list[dict[str, Any]] = [
    {"max_num_batched_tokens": 512, "max_num_seqs": 64},
    {"max_num_batched_tokens": 48, "max_num_seqs": 16, "async_scheduling": True},
    {"max_num_batched_tokens": 64, "max_num_seqs": 64, "num_kv_blocks": 80},  # A evicts and preempts
]


@dataclass
class Figures:
    """Counts over all cases."""

    cases: int = 0
    replies: Counter[str] = field(default_factory=Counter)  # of B, by path and status
    num_cached_tokens: int = 0  # of B, alone
    num_attacks: int = 0  # sent while B waited for a reply
    num_turns_with_both: int = 0  # of the event loop, with running requests of A and of B
    differences: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Case:
    """Requests of B, and the prompts of both."""

    seed: str
    calls: list[Call]
    prompts: Prompts

    def attacks(self, connection: int) -> random.Random:
        """Return the generator of what a connection of A sends."""
        return random.Random(f"{self.seed} attacks {connection}")


def case_of(seed: str) -> Case:
    rng = random.Random(seed)
    prompts = Prompts(rng)
    return Case(seed, [call_of_b(rng, prompts, number) for number in range(NUM_CALLS)], prompts)


class Comparison:
    """A server with one engine configuration, for many cases."""

    def __init__(self, url: str, engine: InProcessEngine, in_flight: Any, figures: Figures, *, is_tight: bool) -> None:
        self._url, self._engine, self._in_flight = url, engine, in_flight
        self._is_tight = is_tight
        self.figures = figures

    async def compare(self, seed: str) -> None:
        """Serve a case twice and note the differences."""
        case = case_of(seed)
        alone = await self._serve(case, with_attacks=False)
        beside = await self._serve(case, with_attacks=True)
        self.figures.cases += 1
        for call, one, other in zip(case.calls, alone, beside, strict=True):
            self.figures.replies[f"{call.path} {one[0]}"] += 1
            self.figures.num_cached_tokens += sum(cached_tokens(one[2]))
            if self._is_tight or call.num_prompts > 1:  # whether one prompt finds another's blocks: a matter of steps
                one, other = without_cached_tokens(one), without_cached_tokens(other)
            if one != other:
                self.figures.differences.append(f"case {seed}, {call}: alone {one}, beside A {other}")

    async def _serve(self, case: Case, *, with_attacks: bool) -> list[Comparable]:
        async with self._engine.running() as engine, httpx.AsyncClient(base_url=self._url, timeout=END_S) as client:
            connections = range(NUM_CONNECTIONS if with_attacks else 0)
            attackers = [asyncio.create_task(self._attack(case, number)) for number in connections]
            watch = asyncio.create_task(self._watch(engine)) if with_attacks else None
            replies = [await ask(client, call) for call in case.calls]
            for task in [*attackers, *([watch] if watch else [])]:
                task.cancel()
            ends = await asyncio.gather(*attackers, return_exceptions=True)
            assert all(isinstance(end, asyncio.CancelledError) for end in ends), ends
            await self._in_flight.wait_idle(END_S)
        assert self._engine.client.num_open == 0, "requests without an end"
        return replies

    async def _attack(self, case: Case, number: int) -> None:
        """Send one request of A after the other."""
        rng = case.attacks(number)
        while True:
            await send(self._url, attack_of_a(rng, case.prompts, KEY_OF_A))
            self.figures.num_attacks += 1

    async def _watch(self, engine: Any) -> None:
        """Count the turns of the event loop in which requests of both tenants run."""
        while True:
            tenants = {sequence.request.tenant for sequence in engine.scheduler.requests.running}
            self.figures.num_turns_with_both += len(tenants) == len(KEYS)
            await asyncio.sleep(0)


async def ask(client: httpx.AsyncClient, call: Call) -> Comparable:
    headers = call.headers | {"authorization": f"Bearer {KEY_OF_B}"}
    method = "GET" if call.content is None else "POST"
    return comparable(await client.request(method, call.path, content=call.content, headers=headers))


async def send(url: str, attack: Attack) -> None:
    """Send the request of A and end its connection."""
    client = await RawClient.connect(url)
    try:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            client.writer.write(attack.sent)
            await client.writer.drain()
            if attack.ending == "leave while it answers":
                await client.reader.read(attack.num_read)
            elif attack.ending == "read":
                client.writer.write_eof() if not is_whole(attack.sent) else None
                while await client.reader.read(1 << 16):
                    pass
    finally:
        client.writer.transport.abort()


def is_whole(sent: bytes) -> bool:
    """Return False if the server may wait for more: then the connection would stay open until a timeout."""
    head, _, body = sent.partition(b"\r\n\r\n")
    return head.count(b"content-length: %d\r\n" % len(body)) == 1 or body.endswith(b"0\r\n\r\n")


def cached_tokens(value: Any) -> list[int]:
    """Return all counts of cached tokens in a reply."""
    if isinstance(value, dict):
        own = [member for name, member in value.items() if name in CACHED and isinstance(member, int)]
        return own + [count for member in value.values() for count in cached_tokens(member)]
    return [count for member in value for count in cached_tokens(member)] if isinstance(value, list) else []


CACHED = ("cached_tokens", "cache_read_input_tokens")


def without_cached_tokens(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: without_cached_tokens(member) for name, member in value.items() if name not in CACHED}
    return type(value)(map(without_cached_tokens, value)) if isinstance(value, list | tuple) else value


@contextlib.asynccontextmanager
async def comparison(load: dict[str, Any], figures: Figures, model: Path = MODEL_DIR) -> AsyncIterator[Comparison]:
    """Load the bundled model with a configuration of LOADS and serve it."""
    texts = await load_texts(Settings(), model, InlineSandbox())
    engine = InProcessEngine(model, texts.tokenizer.vocabulary(), **COMMON | load)
    await texts.grammars.prepare()
    async with serving(state_around(engine.client, texts)) as (url, in_flight):
        yield Comparison(url, engine, in_flight, figures, is_tight="num_kv_blocks" in load)


async def compare_cases(seed: int, count: int) -> Figures:
    """Compare `count` cases, shared out over the configurations."""
    figures = Figures()
    for number, load in enumerate(LOADS):
        async with comparison(load, figures) as pair:
            for case in range(number, count, len(LOADS)):
                await pair.compare(f"{seed}-{case}")
    return figures
