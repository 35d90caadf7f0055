"""What the engine says of requests, on its way from the socket's side to the handlers that wait for it."""

import asyncio
import math
from collections.abc import Sequence

import msgspec

from engine.types import RequestOutput


class EngineDied(Exception):
    """The engine is gone, and with it every request that was running. The message is fit for a client."""


class OutputCollector:
    """The outputs of the requests submitted together, on their way from the socket to the handler that waits for them.

    Made on the event loop. One timer serves all waits: it is set anew only when it fires, not at each of them.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._outputs: list[RequestOutput] = []
        self._failure: str | None = None
        self._reader: asyncio.Future[None] | None = None  # waits for something to come
        self._until_s = 0.0  # how long it waits, on the loop's clock
        self._timer: asyncio.TimerHandle | None = None

    def put(self, output: RequestOutput) -> None:
        """Add what a step gave. Never blocks; the requests' own max_tokens bound what can pile up."""
        self._outputs.append(output)
        self._wake()

    def fail(self, reason: str) -> None:
        """After what is already here, `get` raises EngineDied(reason)."""
        self._failure = reason
        self._wake()

    async def get(self, until_s: float = math.inf) -> list[RequestOutput]:
        """Everything since the last call, one output per request; waits for the first until `until_s` on the loop's
        clock, and gives nothing where nothing came. What a lagging reader missed is merged, as of a longer step.

        Raises EngineDied once the engine is gone and its last outputs are read.
        """
        if not self._outputs and self._failure is None:
            await self._something(until_s)
        outputs, self._outputs = self._outputs, []
        if not outputs and self._failure is not None:
            raise EngineDied(self._failure)
        return outputs if len(outputs) < 2 else merged_by_request(outputs)

    def close(self) -> None:
        """Nobody reads any more."""
        if self._timer is not None:
            self._timer.cancel()

    async def _something(self, until_s: float) -> None:
        self._reader, self._until_s = self._loop.create_future(), until_s
        if self._timer is None and until_s < math.inf:
            self._timer = self._loop.call_at(until_s, self._time_is_up)
        try:
            await self._reader
        finally:
            self._reader = None

    def _wake(self) -> None:
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)

    def _time_is_up(self) -> None:
        """Of the wait that it was set for, or of an earlier one."""
        self._timer = None
        if self._reader is None:
            return
        if self._loop.time() >= self._until_s:
            self._wake()
        elif self._until_s < math.inf:
            self._timer = self._loop.call_at(self._until_s, self._time_is_up)


def merged_by_request(outputs: Sequence[RequestOutput]) -> list[RequestOutput]:
    """One output per request, in the order of their first ones."""
    by_request: dict[int, list[RequestOutput]] = {}
    for output in outputs:
        by_request.setdefault(output.request_id, []).append(output)
    return [group[0] if len(group) == 1 else merge_outputs(group) for group in by_request.values()]


def merge_outputs(outputs: Sequence[RequestOutput]) -> RequestOutput:
    """Consecutive outputs of one request as the single output of a longer step."""
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
    )
