"""Scripted engine with the interface of EngineClient: no process and no model, but real output collectors."""

import asyncio
import itertools
import struct
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Literal

import msgspec

from engine.messages import Ready
from engine.types import (
    NOTHING_TO_SAMPLE,
    ExpertReport,
    LayerExperts,
    Request,
    RequestOutput,
    StepStats,
    Timing,
    TokenLogprobs,
)
from server.engine_client.adapter_queries import AdapterError
from server.engine_client.output_collector import EngineDied, OutputCollector
from server.engine_client.status import EngineStatus, Phase

EOS = 2
MAX_MODEL_LEN = 256
VOCAB_SIZE = 32000

READY = Ready(
    max_model_len=MAX_MODEL_LEN,
    max_prompt_tokens=MAX_MODEL_LEN,
    vocab_size=VOCAB_SIZE,
    eos_token_ids=[EOS],
    num_parameters=0,
    weight_bytes=0,
    kv_cache_bytes=0,
    kv_bytes_per_token=1,
    num_blocks=64,
    block_size=16,
    num_layers=1,
    num_experts=8,
    experts_per_token=2,
    window=None,
    dtype="float32",
    device="cpu",
    backend="reference",
    fingerprint="fake-fingerprint",
    phase_seconds={},
    dim=8,
)


def entry(token_id: int, num_top: int) -> TokenLogprobs:
    """Return the logprobs that this engine gives a token. The top tokens never include the token itself."""
    top_ids = [(token_id + 1 + rank) % VOCAB_SIZE for rank in range(num_top)]
    return TokenLogprobs(token_id, -0.5 - token_id % 7, top_ids, [-0.25 * (rank + 1) for rank in range(num_top)])


def experts_of(token_id: int) -> list[int]:
    """Return the two of eight experts of a token, in this engine's only layer."""
    return [token_id % 8, (token_id + 3) % 8]


def gates_of(token_id: int) -> bytes:
    """Return the gate logits of a token in this engine's only layer; its experts have the largest."""
    logits = [(expert - token_id) / 8 for expert in range(8)]
    for rank, expert in enumerate(experts_of(token_id)):
        logits[expert] = 5000.0 - rank
    return struct.pack("<8f", *logits)


def routing_of(request: Request, token_ids: Sequence[int]) -> dict[str, Any]:
    """Return the fields of an output that reports these tokens' experts, and their gate logits if requested."""
    if not token_ids or not request.expert_routing:
        return {}
    fields: dict[str, Any] = {"expert_routing": [[experts_of(token_id)] for token_id in token_ids]}
    return fields | ({"gate_logits": list(map(gates_of, token_ids))} if request.gate_logits else {})


def prompt_experts(token_ids: Sequence[int]) -> list[list[int]]:
    """Return the token counts of a prompt, [layers][experts]."""
    routed = [expert for token_id in token_ids for expert in experts_of(token_id)]
    return [[routed.count(expert) for expert in range(8)]]


def embedding_of(token_ids: Sequence[int], length: int) -> bytes:
    """Return the embedding that this engine gives a prompt: 0.6 and 0.8, or 1, at the places of its last two tokens."""
    numbers = [0.0] * length
    if len(token_ids) > 1 and token_ids[-2] % length != token_ids[-1] % length:
        numbers[token_ids[-2] % length], numbers[token_ids[-1] % length] = 0.6, 0.8
    else:
        numbers[token_ids[-1] % length] = 1.0
    return struct.pack(f"<{length}f", *numbers)


def outputs_for(request: Request, script: Sequence[int]) -> Iterator[RequestOutput]:
    """Yield one output per token of the script, up to an end token or the request's limit."""
    params = request.params
    want = params.num_logprobs
    prompt_logprobs = [entry(i, want or 0) for i in request.prompt_token_ids[1:]] if params.prompt_logprobs else None
    timing = Timing(request.arrival_s, request.arrival_s, request.arrival_s, request.arrival_s)
    rid = request.request_id
    of_prompt = prompt_experts(request.prompt_token_ids) if request.expert_usage else None
    reported = request.prompt_token_ids if request.prompt_routing else []  # with the next output
    if request.embedding_len is not None:
        embedding = embedding_of(request.prompt_token_ids, request.embedding_len)
        yield RequestOutput(rid, finish_reason="stop", timing=timing, num_cached_tokens=1, embedding=embedding)
    elif params.max_tokens == 0:
        yield RequestOutput(
            rid,
            prompt_logprobs=prompt_logprobs,
            finish_reason="length",
            timing=timing,
            expert_prompt_tokens=of_prompt,
            **routing_of(request, reported),
        )
    for position, token_id in enumerate(script[: params.max_tokens]):
        ends = token_id == EOS or token_id in params.stop_token_ids
        is_last = position == params.max_tokens - 1
        yield RequestOutput(
            rid,
            token_ids=[token_id],
            logprobs=None if want is None else [entry(token_id, want)],
            prompt_logprobs=prompt_logprobs if position == 0 else None,
            finish_reason="stop" if ends else "length" if is_last else None,
            stop_token_id=token_id if ends else None,
            num_cached_tokens=1,
            timing=timing if ends or is_last else None,
            expert_prompt_tokens=of_prompt if position == 0 else None,
            **routing_of(request, reported),
        )
        reported = [token_id]
        if ends:
            return


class FakeEngine:
    """Answers each request with the tokens of `script(request)`, up to an end token or the request's limit.

    It gives one token per iteration of the event loop; with `held`, one per call of `step`.
    """

    def __init__(self, script: Callable[[Request], Sequence[int]], *, held: bool = False) -> None:
        self.ready: Ready | None = READY
        self.stats = StepStats()
        self.num_waiting = 0
        self.phase: Phase = "ready"
        self.submitted: list[Request] = []
        self.aborted: set[int] = set()
        self.held_adapters: Counter[str] = Counter()  # by digest
        self.loading_adapters: frozenset[str] = frozenset()
        self.may_load = asyncio.Event()  # adapters are loaded when it is set
        self.may_load.set()
        self.collectors: dict[int, OutputCollector] = {}
        self.changed = asyncio.Event()  # something was submitted or aborted
        self._script = script
        self._held = held
        self._ids = itertools.count(1)
        self._plays: list[tuple[OutputCollector, Iterator[RequestOutput]]] = []
        self._player: asyncio.Task[None] | None = None

    @property
    def status(self) -> EngineStatus:
        return EngineStatus(self.phase)

    def new_request_id(self) -> int:
        return next(self._ids)

    def submit(self, requests: Sequence[Request]) -> OutputCollector:
        self.submitted += requests
        collector = OutputCollector()
        for request in requests:
            self.collectors[request.request_id] = collector
            self._plays.append((collector, outputs_for(request, self._script(request))))
        if not self._held:
            self._player = asyncio.get_running_loop().create_task(self._play())
        self.changed.set()
        return collector

    def abort(self, request_ids: Iterable[int]) -> None:
        self.aborted |= set(request_ids)
        self.changed.set()

    async def experts(self, window_s: float | None, *, reset: bool = False) -> ExpertReport:
        """Report that expert 2 computed token 7 nine times since the start, once in any window, never after a reset."""
        if self.phase == "dead":
            raise EngineDied("gone")
        count = 0 if reset else 9 if window_s is None else 1
        top = [[(7, count)] if count and expert == 2 else [] for expert in range(8)]
        return ExpertReport(5.0, [LayerExperts([0, 0, count, 0, 0, 0, 0, 0], [[0] * 8] * 8, top)])

    async def load_adapter(self, name: str, directory: str) -> None:
        """Load an adapter, whose digest is its directory; one whose directory ends in "bad" cannot be served."""
        if self.ready is None or self.phase == "dead":
            raise EngineDied("gone")
        if directory.endswith("bad"):
            raise AdapterError(f"{directory}: no such directory")
        self.loading_adapters |= {name}
        await self.may_load.wait()
        self.loading_adapters -= {name}
        self.ready = msgspec.structs.replace(self.ready, adapters=self.ready.adapters | {name: directory})

    def unload_adapter(self, name: str) -> None:
        assert self.ready is not None
        left = {other: digest for other, digest in self.ready.adapters.items() if other != name}
        self.ready = msgspec.structs.replace(self.ready, adapters=left)

    def hold_adapter(self, digest: str) -> None:
        self.held_adapters[digest] += 1

    def release_adapter(self, digest: str) -> None:
        self.held_adapters[digest] -= 1

    def step(self) -> bool:
        """Give one output to each unfinished request. Returns False when all are finished."""
        plays, self._plays = self._plays, []
        for collector, outputs in plays:
            output = next(outputs, None)
            if output is not None and output.request_id not in self.aborted:
                collector.put(output)
                self._plays.append((collector, outputs))
        return bool(self._plays)

    def fail(self, how: Literal["died", "row", "queue_timeout", "timeout", "constraints"]) -> None:
        """Let the only submitted request fail: with the engine, alone, by a deadline or by its constraints."""
        (request,) = self.submitted
        collector = self.collectors[request.request_id]
        if how == "died":
            collector.fail("gone")
        elif how in ("queue_timeout", "timeout"):
            collector.put(RequestOutput(request.request_id, finish_reason=how))
        elif how == "constraints":
            collector.put(RequestOutput(request.request_id, finish_reason="error", error=NOTHING_TO_SAMPLE))
        else:
            collector.put(RequestOutput(request.request_id, finish_reason="error", error="not a number"))

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait until the condition is true; it is checked after each submission and abort."""
        while not condition():
            self.changed.clear()
            await self.changed.wait()

    async def until_played(self) -> None:
        """Wait until every output was given."""
        await self.until(lambda: self._player is not None)
        assert self._player is not None
        await self._player

    async def _play(self) -> None:
        for _ in iter(self.step, False):
            await asyncio.sleep(0)
