"""The life of one generation: admission, the engine's queue, its outputs as deltas of text, and its accounts.

Knows prompts as token ids and choices as text. Knows nothing of HTTP replies: streams and full replies are made of the
same deltas.
"""

import asyncio
import math
import time
from collections import Counter
from collections.abc import AsyncGenerator, Sequence

from engine.types import NOTHING_TO_SAMPLE, Request, RequestOutput
from server.engine_client.output_collector import EngineDied
from server.errors import (
    ApiError,
    cut_short,
    deadline_exceeded,
    internal_error,
    invalid_value,
    queue_timeout,
    unavailable,
)
from server.generation.account import RequestAccount
from server.generation.admission import GONE_RETRY_S, LOADING_RETRY_S
from server.generation.choice import Delta
from server.generation.jobs import Job, JobBuilder
from server.generation.prediction import PredictionTally
from server.generation.prompt import Prompt
from server.generation.reply_size import reply_bytes
from server.generation.state import OutputStream, ServerState
from server.generation.usage import ExpertTally, Usage, count_usage
from server.observability.access_log import RequestRecord
from server.observability.metric_families import Outcome
from server.structured_output.constraints import Constraint


class Generation:
    """All choices of one HTTP request. Iterate `deltas` once, and close it: closing ends the engine's work."""

    def __init__(
        self, state: ServerState, jobs: Sequence[Job], record: RequestRecord, *, is_continued: bool = False
    ) -> None:
        """`record` of the HTTP request: the choices are added to it as they end.

        `is_continued`: the choices are the next part of an admitted request; see Admission.admit_part.
        """
        self.http_id = record.request_id
        self._record = record
        self._state = state
        self._admission = state.admission
        self._jobs = {job.request.request_id: job for job in jobs}
        self._is_continued = is_continued
        self._tenant = jobs[0].request.tenant
        self._accounts: dict[int, RequestAccount] = {}
        self._tally = self._new_tally()
        self._predictions = {
            job.request.request_id: PredictionTally(job.prediction) for job in jobs if job.prediction.token_ids
        }

    @classmethod
    async def prepare(
        cls,
        builder: JobBuilder,
        prompts: Sequence[Prompt],
        record: RequestRecord,
        constraints: Sequence[Constraint] = (),
    ) -> "Generation":
        """Compile the request's grammar and build its jobs. Nothing is queued yet.

        `constraints`: those that the request's tools imply. Raises ApiError 400 for a request that cannot be followed,
        429 while too many grammars are compiled.
        """
        grammar = await builder.texts.grammars.compile(builder.request, constraints, builder.tenant)
        record.user = builder.request.user
        return cls(builder.state, await builder.build(prompts, grammar), record)

    @property
    def num_choices(self) -> int:
        """Number of choices, over all prompts."""
        return len(self._jobs)

    @property
    def seed(self) -> int:
        """The seed of all choices."""
        return next(iter(self._jobs.values())).request.params.seed

    @property
    def reply_bytes(self) -> int:
        """Memory that the log probabilities and expert ids of the reply may need, from above."""
        ready = self._state.engine.ready
        return sum(reply_bytes(job.request, ready) for job in self._jobs.values()) if ready else 0

    @property
    def num_completion(self) -> int:
        """Tokens of all choices up to now."""
        return sum(job.choice.num_tokens for job in self._jobs.values())

    def usage(self, num_completion: int | None = None) -> Usage:
        """Return the usage up to now, or with fewer completion tokens."""
        firsts = [job for job in self._jobs.values() if job.request.params.choice_index == 0]
        return count_usage(
            num_prompt=sum(len(job.request.prompt_token_ids) for job in firsts),
            num_cached=sum(self._accounts[job.request.request_id].num_cached_tokens for job in firsts),
            num_completion=self.num_completion if num_completion is None else num_completion,
        )

    def final_usage(self) -> Usage:
        """Return the usage after `deltas` has ended."""
        usage = self.usage()
        if self._predictions:
            tallies = self._predictions.values()
            usage["completion_tokens_details"] = {
                "accepted_prediction_tokens": sum(tally.num_accepted for tally in tallies),
                "rejected_prediction_tokens": sum(tally.num_rejected for tally in tallies),
            }
        return usage if self._tally is None else {**usage, "expert_tokens": self._tally.tokens()}

    async def next_turn(self) -> None:
        """Wait until this generation may run a slice of long work on the event loop."""
        await self._state.turns.next(self._tenant)

    def _new_tally(self) -> ExpertTally | None:
        ready = self._state.engine.ready
        wants_experts = any(job.request.expert_usage for job in self._jobs.values())
        return ExpertTally(ready.num_layers, ready.num_experts) if wants_experts and ready else None

    async def deltas(self, idle_s: float) -> AsyncGenerator[list[Delta], None]:
        """Queue the choices, then yield their deltas as they arrive; an empty list after each `idle_s` without any.

        Raises ApiError: 429 and 503 if the generation is not admitted, 503 and 504 if a deadline passed, 500 if the
        engine failed on a choice, 503 if the engine is gone. In every case, each choice is accounted for and no choice
        keeps running.
        """
        if not self._is_continued:
            self._admit()
        self._open_accounts()
        loop = asyncio.get_running_loop()
        outputs_stream: OutputStream | None = None
        open_ids = set(self._jobs)
        outcome: Outcome = "abort"
        try:
            if self._is_continued:
                await self._wait_for_places()
            outputs_stream = self._state.engine.submit(self._requests)
            yielded_s = loop.time()
            while open_ids:
                if outputs_stream.has_backlog:  # if the client is gone, the turn does not come
                    await self.next_turn()
                outputs = await outputs_stream.get(yielded_s + idle_s)
                deltas = self._process(outputs, open_ids)
                if deltas or not outputs:
                    yield deltas
                    yielded_s = loop.time()
        except EngineDied:
            outcome = "error"
            raise self._reason_of_death() from None
        except RequestTimedOut as timeout:
            outcome = "timeout"
            raise self._timeout_error(timeout) from None
        except Exception:
            outcome = "error"
            raise
        finally:
            if outputs_stream is not None:
                outputs_stream.close()
            self._end(open_ids, outcome)
            self._admission.end(self._requests)

    @property
    def _requests(self) -> list[Request]:
        return [job.request for job in self._jobs.values()]

    def _admit(self) -> None:
        try:
            self._admission.admit(self._requests)
        except ApiError:
            self._state.metrics.rejected(self.num_choices)
            raise

    async def _wait_for_places(self) -> None:
        """Wait until the queue has places for this part. Raises RequestTimedOut at the request's deadline."""
        requests = self._requests
        deadline_s, queue_deadline_s = (
            math.inf if limit is None else limit for limit in (requests[0].deadline_s, requests[0].queue_deadline_s)
        )
        wait_s = min(deadline_s, queue_deadline_s) - time.monotonic()
        try:
            async with asyncio.timeout(wait_s if wait_s < math.inf else None):
                await self._admission.admit_part(requests)
        except TimeoutError:
            raise RequestTimedOut(in_queue=queue_deadline_s < deadline_s) from None

    def _open_accounts(self) -> None:
        num_choices = Counter(job.request.params.prompt_index for job in self._jobs.values())
        self._accounts = {
            request_id: self._open_account(job.request, num_choices[job.request.params.prompt_index])
            for request_id, job in self._jobs.items()
        }

    def _open_account(self, request: Request, num_choices: int) -> RequestAccount:
        return RequestAccount(
            self._state.metrics,
            self._record,
            num_prompt_tokens=len(request.prompt_token_ids),
            arrival_s=request.arrival_s,
            max_tokens=request.params.max_tokens,
            num_choices=None if request.params.choice_index else num_choices,
        )

    def _reason_of_death(self) -> ApiError:
        """Return the error of a running request whose engine is gone: the server was stopped, or the engine failed."""
        reason = self._admission.unavailable_reason() or unavailable("engine_dead", LOADING_RETRY_S)
        return cut_short(GONE_RETRY_S) if reason.code == "draining" else reason

    def _timeout_error(self, timeout: "RequestTimedOut") -> ApiError:
        return queue_timeout(self._admission.retry_after_s()) if timeout.in_queue else deadline_exceeded()

    def _process(self, outputs: Sequence[RequestOutput], open_ids: set[int]) -> list[Delta]:
        """Return the outputs' deltas, and remove the choices that end from `open_ids`.

        Raises ApiError and RequestTimedOut for a choice that failed.
        """
        now_s = time.monotonic()
        deltas = []
        for output in outputs:
            if output.request_id in open_ids:
                if (failure := _failure_of(output)) is not None:
                    self._record_times(outputs, open_ids, now_s)
                    raise failure
                delta = self._push(output, now_s)
                if delta is not None:
                    deltas.append(delta)
                if self._jobs[output.request_id].choice.finish_reason:
                    open_ids.remove(output.request_id)
        return deltas

    def _record_times(self, outputs: Sequence[RequestOutput], open_ids: set[int], now_s: float) -> None:
        """Record the engine's times of choices that end without their text, all at once if a deadline has passed."""
        for output in outputs:
            if output.request_id in open_ids:
                num_tokens = self._jobs[output.request_id].choice.num_tokens
                self._accounts[output.request_id].record_output(output, num_tokens, now_s)

    def _push(self, output: RequestOutput, now_s: float) -> Delta | None:
        self._admission.remove(output.request_id)
        choice = self._jobs[output.request_id].choice
        account = self._accounts[output.request_id]
        num_tokens, num_routed = choice.num_tokens, choice.num_routed
        delta = choice.push(output)
        if output.request_id in self._predictions:
            self._predictions[output.request_id].push(output.token_ids[: choice.num_tokens - num_tokens])
        if self._tally is not None:
            if output.expert_prompt_tokens is not None:
                self._tally.add_prompt(output.expert_prompt_tokens)
            routed = (output.expert_routing or [])[: choice.num_routed - num_routed]
            self._tally.add_completion(routed[max(0, choice.num_prompt_routed - num_routed) :])
        account.record_output(output, choice.num_tokens, now_s)
        if choice.finish_reason:
            account.close(choice.finish_reason, now_s)
            self._admission.retry_estimator.record_end()
            if output.finish_reason is None:  # a stop string, which the engine does not know
                self._state.engine.abort([output.request_id])
        return delta

    def _end(self, open_ids: set[int], outcome: Outcome) -> None:
        if open_ids:
            self._state.engine.abort(sorted(open_ids))
        for request_id in open_ids:
            self._admission.remove(request_id)
            self._accounts[request_id].close(outcome, time.monotonic())


class RequestTimedOut(Exception):
    """A deadline that the client set has passed."""

    def __init__(self, *, in_queue: bool) -> None:
        super().__init__()
        self.in_queue = in_queue


def _failure_of(output: RequestOutput) -> ApiError | RequestTimedOut | None:
    """Return what a choice's output ends the generation with; None unless it failed."""
    if output.finish_reason in ("queue_timeout", "timeout"):
        return RequestTimedOut(in_queue=output.finish_reason == "queue_timeout")
    if output.error == NOTHING_TO_SAMPLE:
        return invalid_value("The request's constraints leave no token to sample.", None)
    if output.finish_reason == "error":
        error = internal_error()
        error.message = output.error or error.message
        return error
    if output.finish_reason == "abort":  # by the engine: outputs of requests that this server aborted are not read
        return unavailable("draining", GONE_RETRY_S)
    return None
