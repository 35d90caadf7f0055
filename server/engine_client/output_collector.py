"""Outputs of requests between the engine's socket and the handlers that wait for them."""

import asyncio
import math
from array import array
from collections import deque
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import msgspec

from engine.types import RequestOutput

MAX_OUTPUTS = 128  # that become text in one turn of the event loop: 1 to 3 ms with 20 log probabilities each
CRASHED = "the engine stopped; the request can be sent again"
SHUTTING_DOWN = "the server is shutting down"


class EngineDied(Exception):
    """The engine is gone, and with it every running request. The message may be sent to clients."""


class _Block(NamedTuple):
    """Packed outputs, one of each request, merged from MAX_OUTPUTS."""

    request_ids: "array[int]"  # of the outputs that have token ids and nothing else
    counts: "array[int]"  # of their token ids
    token_ids: "array[int]"
    others: list[RequestOutput]

    @classmethod
    def of(cls, outputs: Sequence[RequestOutput]) -> "_Block":
        block = cls(array("q"), array("i"), array("i"), [])
        for output in outputs:
            if output == RequestOutput(output.request_id, output.token_ids):
                block.request_ids.append(output.request_id)
                block.counts.append(len(output.token_ids))
                block.token_ids.extend(output.token_ids)
            else:
                block.others.append(output)
        return block

    def outputs(self) -> Iterator[RequestOutput]:
        """Yield the outputs, one of each request."""
        start = 0
        for request_id, count in zip(self.request_ids, self.counts, strict=True):
            yield RequestOutput(request_id, self.token_ids[start : start + count].tolist())
            start += count
        yield from self.others


class OutputCollector:
    """Collects the outputs of requests that were submitted together, until their handler reads them.

    Create it on the event loop. One timer serves all waits: it is set again only when it fires, not for each wait.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._blocks: deque[_Block] = deque()  # the oldest first
        self._outputs: list[RequestOutput] = []  # those after the blocks
        self._failure: str | None = None
        self._reader: asyncio.Future[None] | None = None  # a pending `get`
        self._until_s = 0.0  # end of its wait, on the loop's clock
        self._timer: asyncio.TimerHandle | None = None

    def put(self, output: RequestOutput) -> None:
        """Add one output of a step. Never blocks; `max_tokens` of the requests bounds what can accumulate.

        Outputs that nobody reads are merged as `get` merges them, and packed: each alone takes the memory of many
        tokens. A token then takes about 8 bytes, and 20 if each output is of another request.
        """
        if len(self._outputs) == MAX_OUTPUTS:
            self._blocks.append(_Block.of(merged_by_request(self._outputs)))
            self._outputs = []
        self._outputs.append(output)
        self._wake()

    @property
    def has_backlog(self) -> bool:
        """True if more outputs are here than one `get` returns: the client reads slowly, or there are many choices."""
        return bool(self._blocks)

    def fail(self, reason: str) -> None:
        """Make `get` raise EngineDied(reason) after the outputs that are already here."""
        self._failure = reason
        self._wake()

    async def get(self, until_s: float = math.inf) -> list[RequestOutput]:
        """Return the outputs since the last call, merged to one per request, as if of one longer step.

        These are at most MAX_OUTPUTS: the next call returns the others. Waits for the first output until `until_s` on
        the loop's clock; the list is empty if none came. Raises EngineDied once the engine is gone and its last outputs
        were read.
        """
        if not self._outputs and self._failure is None:
            await self._wait(until_s)
        if self._blocks:
            return list(self._blocks.popleft().outputs())
        outputs, self._outputs = self._outputs, []
        if not outputs and self._failure is not None:
            raise EngineDied(self._failure)
        return outputs if len(outputs) < 2 else merged_by_request(outputs)

    def close(self) -> None:
        """Cancel the timer. Call it when nothing reads the outputs any more."""
        if self._timer is not None:
            self._timer.cancel()

    async def _wait(self, until_s: float) -> None:
        self._reader, self._until_s = self._loop.create_future(), until_s
        if self._timer is None and until_s < math.inf:
            self._timer = self._loop.call_at(until_s, self._on_timer)
        try:
            await self._reader
        finally:
            self._reader = None

    def _wake(self) -> None:
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)

    def _on_timer(self) -> None:
        """Wake the reader if its wait is over; the timer may have been set for an earlier wait."""
        self._timer = None
        if self._reader is None:
            return
        if self._loop.time() >= self._until_s:
            self._wake()
        elif self._until_s < math.inf:
            self._timer = self._loop.call_at(self._until_s, self._on_timer)


def merged_by_request(outputs: Sequence[RequestOutput]) -> list[RequestOutput]:
    """Merge outputs to one per request, in the order of each request's first output."""
    by_request: dict[int, list[RequestOutput]] = {}
    for output in outputs:
        by_request.setdefault(output.request_id, []).append(output)
    return [group[0] if len(group) == 1 else merge_outputs(group) for group in by_request.values()]


def merge_outputs(outputs: Sequence[RequestOutput]) -> RequestOutput:
    """Merge consecutive outputs of one request into the output of one longer step."""
    last = outputs[-1]
    logprobs = [entry for output in outputs for entry in output.logprobs or []]
    with_prompt = [output.prompt_logprobs for output in outputs if output.prompt_logprobs is not None]
    return msgspec.structs.replace(
        last,
        token_ids=[token_id for output in outputs for token_id in output.token_ids],
        logprobs=logprobs if any(output.logprobs is not None for output in outputs) else None,
        prompt_logprobs=with_prompt[0] if with_prompt else None,
        num_cached_tokens=max(output.num_cached_tokens for output in outputs),
        expert_prompt_tokens=outputs[0].expert_prompt_tokens,
        expert_routing=[position for output in outputs for position in output.expert_routing or []] or None,
        gate_logits=[position for output in outputs for position in output.gate_logits or []] or None,
    )
