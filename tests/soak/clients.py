"""Actions of clients during a soak. Each action is one good or bad connection and checks its response."""

import asyncio
import contextlib
import random
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from tests.support.servers.raw_http import LEAVINGS, Answer, RawClient

MODEL = "smoe-demo"
NETWORK_ERRORS = (ConnectionError, asyncio.IncompleteReadError, TimeoutError, OSError)
ACTION_TIMEOUT_S = 240.0
BUSY = frozenset({429, 503})

BAD_BODIES: tuple[object, ...] = (
    b"",
    b"{",
    b"[]",
    b'{"model": "smoe-demo", "prompt": NaN}',
    b'{"model": "smoe-demo", "prompt": "\\ud800"}',
    b"[" * 5000,
    {"model": MODEL},
    {"model": "other", "prompt": "a"},
    {"model": MODEL, "prompt": "a", "n": 9},
    {"model": MODEL, "prompt": "a", "temperature": -1},
    {"model": MODEL, "prompt": "a", "max_tokens": 10**9},
    {"model": MODEL, "prompt": "a", "structured_outputs": {"regex": "["}},
    {"model": MODEL, "prompt": "a", "stream": True, "logit_bias": {"x": 1}},
)
BAD_BYTES = (b"\x16\x03\x01\x00\xa5", b"GET /\r\n\r\n", b"BREW / HTTP/1.1\r\nhost: localhost\r\n\r\n", b"x" * 70_000)


@dataclass
class Tally:
    """Counts of actions and statuses, and failed checks."""

    actions: Counter[str] = field(default_factory=Counter)
    statuses: Counter[int] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)  # one per failed check

    def fault(self, text: str) -> None:
        if len(self.faults) < 1000:
            self.faults.append(text)


class Clients:
    """Run random actions. `solo`: requests with the tokens of their solo runs."""

    def __init__(self, url: str, keys: list[str], solo: list[tuple[dict[str, Any], list[int]]], seed: int) -> None:
        self.tally = Tally()
        self._url = url
        self._keys = keys
        self._solo = solo
        self._rng = random.Random(seed)
        self._actions: list[tuple[int, Callable[[], Awaitable[None]]]] = [
            (40, self.good),
            (25, self.leaves),
            (12, self.bad_body),
            (4, self.bad_bytes),
            (4, self.stalls),
            (3, self.slow_body),
            (3, self.slow_head),
            (3, self.overlong),
            (2, self.huge_body),
            (3, self.wrong_key),
            (4, self.lost),
            (3, self.hurried),
        ]

    async def play(self, stop: asyncio.Event) -> None:
        """Run one action after the other until `stop` is set."""
        weights, actions = zip(*self._actions, strict=True)
        while not stop.is_set():
            [action] = self._rng.choices(actions, weights)
            self.tally.actions[action.__name__] += 1
            try:
                async with asyncio.timeout(ACTION_TIMEOUT_S):
                    await action()
            except NETWORK_ERRORS as error:
                self.tally.fault(f"{action.__name__}: {type(error).__name__} {error}")

    def _key(self) -> dict[str, str]:
        """Return the header of a random key; the first key is used most."""
        return {"authorization": f"Bearer {self._rng.choice([self._keys[0], *self._keys])}"}

    def _request(self, *, streamed: bool | None = None) -> tuple[dict[str, Any], list[int]]:
        body, tokens = self._rng.choice(self._solo)
        return {**body, "stream": self._rng.random() < 0.5 if streamed is None else streamed}, tokens

    async def _exchange(self, body: object, headers: dict[str, str] | None = None) -> Answer:
        client = await RawClient.connect(self._url)
        try:
            client.post("/v1/completions", body, headers or self._key())
            answer = await client.answer()
        finally:
            client.close()
        self.tally.statuses[answer.status] += 1
        return answer

    def _expect(self, what: str, answer: Answer, *statuses: int) -> bool:
        if answer.status not in statuses:
            self.tally.fault(f"{what}: {answer.status} {answer.body[:200]!r}")
        return answer.status in statuses

    async def good(self) -> None:
        """Check that a good request has the tokens of its solo run."""
        body, tokens = self._request()
        answer = await self._exchange(body)
        if not self._expect("good", answer, 200, *BUSY) or answer.status in BUSY:
            return
        parts = answer.events if body["stream"] else [answer.json()]
        got = [token for part in parts for choice in part["choices"] for token in choice["token_ids"]]
        if got != tokens or not answer.is_done:
            self.tally.fault(f"good: tokens differ from the solo run, or no end: {len(got)} of {len(tokens)}")

    async def leaves(self) -> None:
        """Disconnect at once, a moment later, or after some events, in each possible way."""
        body, _ = self._request()
        client = await RawClient.connect(self._url)
        client.post("/v1/completions", body, self._key())
        if self._rng.random() < 0.5:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._rng.random() * 3):
                    await client.reader.readline()
        elif body["stream"]:
            num_events = self._rng.randrange(20)
            answer = await client.head()
            async for _ in client.events(answer):
                num_events -= 1
                if num_events < 0:
                    break
        with contextlib.suppress(OSError):  # unread data causes a reset
            await client.leave(self._rng.choice(LEAVINGS))

    async def bad_body(self) -> None:
        answer = await self._exchange(self._rng.choice(BAD_BODIES))
        self._expect("bad body", answer, 400, 404)

    async def bad_bytes(self) -> None:
        client = await RawClient.connect(self._url)
        client.writer.write(self._rng.choice(BAD_BYTES))
        with contextlib.suppress(OSError):  # the server closes the connection with unread bytes
            client.writer.write_eof()
            while await client.reader.read(1 << 16):
                pass
        client.close()

    async def stalls(self) -> None:
        """Request a long stream and read nothing for a while."""
        client = await RawClient.connect(self._url, receive_bytes=4096)
        body, _ = self._request(streamed=True)
        client.post("/v1/completions", {**body, "n": 8, "logprobs": 20}, self._key())
        client.writer.transport.pause_reading()  # type: ignore[attr-defined]
        await asyncio.sleep(self._rng.choice([5, 15, 90]))
        await client.leave("rst")

    async def slow_body(self) -> None:
        """Send a body byte by byte, sometimes completely."""
        client = await RawClient.connect(self._url)
        head = f"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\nauthorization: {self._key()['authorization']}\r\n"
        client.writer.write(f"{head}content-type: application/json\r\ncontent-length: 20\r\n\r\n".encode())
        for byte in b'{"model": "other"  }'[: self._rng.choice([5, 20])]:
            client.writer.write(bytes([byte]))
            await asyncio.sleep(0.3)
        await client.leave("fin")

    async def slow_head(self) -> None:
        """Send a head byte by byte (slowloris); the server closes the connection."""
        client = await RawClient.connect(self._url)
        client.writer.write(b"GET /health HTTP/1.1\r\nhost: localhost\r\n")
        for _ in range(self._rng.randrange(1, 15)):
            await asyncio.sleep(1)
            if client.reader.at_eof():
                break
            client.writer.write(b"a")
        await client.leave("rst")

    async def overlong(self) -> None:
        answer = await self._exchange({"model": MODEL, "prompt": [5] * 100_000})
        self._expect("overlong", answer, 400)

    async def huge_body(self) -> None:
        answer = await self._exchange({"model": MODEL, "prompt": "a" * (2 << 20)})
        self._expect("huge body", answer, 413)

    async def wrong_key(self) -> None:
        answer = await self._exchange({"model": MODEL, "prompt": "a"}, {"authorization": "Bearer no"})
        self._expect("wrong key", answer, 401)

    async def lost(self) -> None:
        """Request an unknown path that was never used before."""
        client = await RawClient.connect(self._url)
        try:
            client.post(f"/nowhere/{self._rng.getrandbits(64)}", {}, self._key())
            self._expect("lost", await client.answer(), 404)
        finally:
            client.close()

    async def hurried(self) -> None:
        """Send a request whose deadline mostly passes."""
        body, _ = self._request(streamed=False)
        answer = await self._exchange({**body, "timeout_s": self._rng.random() * 3, "queue_timeout_s": 2})
        self._expect("hurried", answer, 200, 429, 503, 504)
