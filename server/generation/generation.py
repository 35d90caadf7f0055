"""The life of one generation: admitted, queued in the engine, its outputs turned into deltas, accounted for, over.

Knows prompts as token ids and choices as text. Knows nothing of HTTP replies: a stream and a whole reply read the same
deltas.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import NotRequired, TypedDict

from engine.types import NOTHING_TO_SAMPLE, Request, RequestOutput
from server.engine_client.output_collector import EngineDied
from server.errors import (
    ApiError,
    deadline_exceeded,
    internal_error,
    invalid_value,
    queue_full,
    queue_timeout,
    unavailable,
)
from server.generation.account import RequestAccount
from server.generation.choice import Choice, Delta
from server.generation.state import GONE_RETRY_S, LOADING_RETRY_S, ServerState
from server.generation.usage import ExpertTally, ExpertTokens
from server.observability.metric_families import Outcome


@dataclass(frozen=True)
class Job:
    """One choice: what the engine runs, and what makes text of its tokens."""

    request: Request
    choice: Choice


class PromptTokensDetails(TypedDict):
    """Part of Usage."""

    cached_tokens: int


class Usage(TypedDict):
    """What a generation cost. Each prompt counts once, whatever n is."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails
    expert_tokens: NotRequired[ExpertTokens]  # where asked for, when the generation has ended


def expert_tokens(usage: Usage) -> dict[str, ExpertTokens]:
    """That member, where there is one, for usage in another API's words."""
    return {"expert_tokens": usage["expert_tokens"]} if "expert_tokens" in usage else {}


class Generation:
    """All choices of one HTTP request. Iterate `deltas` once, and close it: that is what ends the engine's work."""

    def __init__(self, state: ServerState, jobs: Sequence[Job], http_id: str, user: str | None = None) -> None:
        """`user`: whom the client asks for, for the log alone."""
        self._state = state
        self._jobs = {job.request.request_id: job for job in jobs}
        self._http_id = http_id
        self._user = user
        self._accounts: dict[int, RequestAccount] = {}
        self._tally = self._new_tally()
        self._waiting: set[int] = set()  # admitted, and nothing has come of them yet

    @property
    def num_choices(self) -> int:
        """Over all prompts."""
        return len(self._jobs)

    def usage(self) -> Usage:
        """So far."""
        firsts = [job for job in self._jobs.values() if job.request.params.choice_index == 0]
        num_prompt = sum(len(job.request.prompt_token_ids) for job in firsts)
        num_completion = sum(job.choice.num_tokens for job in self._jobs.values())
        accounts = [self._accounts[job.request.request_id] for job in firsts]
        return {
            "prompt_tokens": num_prompt,
            "completion_tokens": num_completion,
            "total_tokens": num_prompt + num_completion,
            "prompt_tokens_details": {"cached_tokens": sum(account.num_cached_tokens for account in accounts)},
        }

    def final_usage(self) -> Usage:
        """When `deltas` has ended."""
        usage = self.usage()
        return usage if self._tally is None else {**usage, "expert_tokens": self._tally.tokens()}

    def _new_tally(self) -> ExpertTally | None:
        ready = self._state.engine.ready
        asked = any(job.request.expert_usage for job in self._jobs.values())
        return ExpertTally(ready.num_layers, ready.num_experts) if asked and ready else None

    async def deltas(self, idle_s: float) -> AsyncGenerator[list[Delta], None]:
        """Queues the choices, then yields what they gain, as it comes; an empty list after each `idle_s` of nothing.

        Raises ApiError: 429 and 503 where the generation is not admitted, 503 and 504 where its time is over, 500 where
        the engine failed on a choice, 503 where the engine is gone. However it ends, every choice is accounted for and
        nothing is left running.
        """
        self._admit()
        loop = asyncio.get_running_loop()
        inbox = self._state.engine.submit([job.request for job in self._jobs.values()])
        open_ids = set(self._jobs)
        outcome: Outcome = "abort"
        try:
            yielded_s = loop.time()
            while open_ids:
                outputs = await inbox.get(yielded_s + idle_s)
                deltas = self._take(outputs, open_ids)
                if deltas or not outputs:
                    yield deltas
                    yielded_s = loop.time()
        except EngineDied:
            outcome = "error"
            raise self._state.refusal() or unavailable("engine_dead", LOADING_RETRY_S) from None
        except RequestTimedOut as timeout:
            outcome = "timeout"
            raise self._timeout_error(timeout) from None
        except Exception:
            outcome = "error"
            raise
        finally:
            inbox.close()
            self._end(open_ids, outcome)

    def _admit(self) -> None:
        """Opens the accounts. Raises ApiError where the server takes nothing now, or not so much more."""
        self._accounts = {request_id: self._account(job.request) for request_id, job in self._jobs.items()}
        refusal = self._state.refusal() or self._queue_refusal()
        if refusal:
            self._end(set(self._jobs), "rejected")
            raise refusal
        for request_id, job in self._jobs.items():
            self._state.backlog.add(job.request.tenant, len(job.request.prompt_token_ids))
            self._waiting.add(request_id)

    def _began(self, request_id: int) -> None:
        """Something came of it, or it ended."""
        if request_id in self._waiting:
            self._waiting.remove(request_id)
            request = self._jobs[request_id].request
            self._state.backlog.remove(request.tenant, len(request.prompt_token_ids))

    def _account(self, request: Request) -> RequestAccount:
        return RequestAccount(
            self._state.metrics,
            self._state.access_log,
            http_id=self._http_id,
            user=self._user,
            num_prompt_tokens=len(request.prompt_token_ids),
            arrival_s=request.arrival_s,
        )

    def _queue_refusal(self) -> ApiError | None:
        engine = self._state.engine
        tenant = next(iter(self._jobs.values())).request.tenant
        if engine.num_waiting + self.num_choices <= self._state.max_num_queued and self._state.backlog.has_room(
            tenant, self.num_choices
        ):
            return None
        return queue_full(self._state.throughput.wait_s(engine.num_waiting + self.num_choices))

    def _timeout_error(self, timeout: "RequestTimedOut") -> ApiError:
        waiting = self._state.engine.num_waiting
        return queue_timeout(self._state.throughput.wait_s(waiting)) if timeout.in_queue else deadline_exceeded()

    def _take(self, outputs: Sequence[RequestOutput], open_ids: set[int]) -> list[Delta]:
        """The outputs' deltas. Takes finished choices out of `open_ids`."""
        now_s = time.monotonic()
        deltas = []
        for output in outputs:
            if output.request_id in open_ids:
                _raise_failure(output)
                delta = self._push(output, now_s)
                if delta is not None:
                    deltas.append(delta)
                if self._jobs[output.request_id].choice.finish_reason:
                    open_ids.remove(output.request_id)
        return deltas

    def _push(self, output: RequestOutput, now_s: float) -> Delta | None:
        self._began(output.request_id)
        choice = self._jobs[output.request_id].choice
        account = self._accounts[output.request_id]
        num_routed = choice.num_routed
        delta = choice.push(output)
        if self._tally is not None:
            if output.expert_prompt_tokens is not None:
                self._tally.add_prompt(output.expert_prompt_tokens)
            self._tally.add_completion((output.expert_routing or [])[: choice.num_routed - num_routed])
        account.saw(output, choice.num_tokens, now_s)
        if choice.finish_reason:
            account.close(choice.finish_reason, now_s)
            self._state.throughput.ended()
            if output.finish_reason is None:  # a stop string: the engine does not know of them
                self._state.engine.abort([output.request_id])
        return delta

    def _end(self, open_ids: set[int], outcome: Outcome) -> None:
        if open_ids and outcome != "rejected":
            self._state.engine.abort(sorted(open_ids))
        for request_id in open_ids:
            self._began(request_id)
            self._accounts[request_id].close(outcome, time.monotonic())


class RequestTimedOut(Exception):
    """A deadline that the client gave has passed."""

    def __init__(self, *, in_queue: bool) -> None:
        super().__init__()
        self.in_queue = in_queue


def _raise_failure(output: RequestOutput) -> None:
    if output.finish_reason in ("queue_timeout", "timeout"):
        raise RequestTimedOut(in_queue=output.finish_reason == "queue_timeout")
    if output.error == NOTHING_TO_SAMPLE:
        raise invalid_value("The request's constraints leave no token to sample.", None)
    if output.finish_reason == "error":
        error = internal_error()
        error.message = output.error or error.message
        raise error
    if output.finish_reason == "abort":  # not ours: nobody reads the outputs of what was aborted here
        raise unavailable("draining", GONE_RETRY_S)
