"""Admission of generations: the bounds of the queue, and the estimated wait for clients that are refused."""

import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from typing import Literal, Protocol

from engine.config import max_slots_per_tenant
from engine.types import Request, num_carried_ids
from server.engine_client.status import EngineStatus
from server.errors import ApiError, constraints_full, overloaded, queue_full, unavailable
from server.fairness.budgets import MAX_CONSTRAINT_IDS, TOKENS_PER_CHOICE
from server.fairness.byte_budget import ByteBudget
from server.generation.part_queue import PartQueue
from server.observability.memory_pressure import MemoryMonitor

LOADING_RETRY_S = 5.0  # also while the engine restarts
MEMORY_RETRY_S = 10.0
GONE_RETRY_S = 30.0  # a draining or dead server does not recover by itself, and a stuck engine takes long
WINDOW_S = 60.0  # period over which the pace is measured
MAX_ENDS = 512
UNMEASURED_S = 1.0  # smallest estimate, also if no choice ended in the window


class EngineLoad(Protocol):
    """The part of the engine's client that admission reads."""

    @property
    def status(self) -> EngineStatus: ...
    @property
    def num_waiting(self) -> int: ...


def num_constraint_ids(requests: Sequence[Request]) -> int:
    """Return the number of ids of biases, allowed tokens and bad words in all choices of a generation."""
    return sum(request.params.constraints.num_ids for request in requests)


class RetryEstimator:
    """Estimates waits from the moments at which choices ended in the last WINDOW_S seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """`clock` returns monotonic seconds."""
        self._clock = clock
        self._ends_s: deque[float] = deque(maxlen=MAX_ENDS)

    def record_end(self) -> None:
        """Record that a choice ended now."""
        self._ends_s.append(self._clock())

    def wait_s(self, num_choices: int) -> float:
        """Estimate the seconds until `num_choices` more choices will have ended, at the pace of the window.

        5 ends within 10 s are one each 2 s: 3 more take 6 s. The time since the last end counts too, so that the
        estimate grows when the pace drops.
        """
        now = self._clock()
        while self._ends_s and self._ends_s[0] < now - WINDOW_S:
            self._ends_s.popleft()
        if not self._ends_s:
            return UNMEASURED_S
        return max(UNMEASURED_S, num_choices * (now - self._ends_s[0]) / len(self._ends_s))


class Admission:
    """Accepts generations within the bounds of the queue.

    Counts the accepted choices that have no output yet, and the token ids that they carry, by tenant.
    """

    def __init__(
        self,
        engine: EngineLoad,
        max_choices: int,
        max_tokens: int | None = None,
        num_tenants: int = 1,
        memory: MemoryMonitor | None = None,
    ) -> None:
        """`num_tenants`: if there are several, no tenant may fill the queue alone."""
        self.num_tokens = 0
        self.retry_estimator = RetryEstimator()
        self._engine = engine
        self._memory = memory
        self._num_tenants = num_tenants
        self._max_choices = max_choices
        self._max_per_tenant = max_slots_per_tenant(max_choices) if num_tenants > 1 else max_choices
        self._num_choices: Counter[int] = Counter()  # by tenant
        self._num_tokens: Counter[int] = Counter()  # by tenant
        self._waiting: dict[int, tuple[int, int]] = {}  # request id -> tenant, token ids
        self._constraint_ids = ByteBudget(MAX_CONSTRAINT_IDS, num_tenants)  # of open choices, running ones included
        self.resize(max_choices * TOKENS_PER_CHOICE if max_tokens is None else max_tokens, MAX_CONSTRAINT_IDS)
        self._parts = PartQueue(self._keeps_share, self._has_places)

    def resize(self, max_tokens: int, max_constraint_ids: int) -> None:
        """Set the bounds on token ids of waiting choices and on ids of constraints. What is beyond them stays."""
        self.max_tokens = max_tokens
        self._max_tokens_per_tenant = max_slots_per_tenant(max_tokens) if self._num_tenants > 1 else max_tokens
        self._constraint_ids.resize(max_constraint_ids)

    @property
    def max_choices_of_request(self) -> int:
        """The most choices of one request. With several tenants none may fill the queue, not by one request either."""
        return self._max_per_tenant

    def admit(self, requests: Sequence[Request]) -> None:
        """Count all choices of one generation as waiting, or raise ApiError 429 or 503 and count none of them."""
        unavailable_reason = self.unavailable_reason()
        if unavailable_reason:
            raise unavailable_reason
        num_choices = len(requests)
        if not self.has_room(requests[0].tenant, num_choices):
            raise queue_full(self.retry_after_s(num_choices))
        tenant, num_ids = requests[0].tenant, num_constraint_ids(requests)
        if num_ids and not self._constraint_ids.try_take(tenant, num_ids):
            raise constraints_full(self.retry_after_s(num_choices))
        self._count(requests)

    async def admit_part(self, requests: Sequence[Request]) -> None:
        """Wait until the next part of an admitted request fits into the queue, then count its choices as waiting.

        It is never refused, since the work on the parts before it would be lost. At most `max_choices_of_request`
        choices, without constraints. Submit them before you wait for anything else.
        """
        await self._parts.turn(requests[0].tenant, len(requests))
        self._count(requests)

    def _count(self, requests: Sequence[Request]) -> None:
        for request in requests:
            self.add(request.request_id, request.tenant, num_carried_ids(request))

    def end(self, requests: Sequence[Request]) -> None:
        """Give back what a generation that was admitted holds until its end."""
        self._constraint_ids.give_back(requests[0].tenant, num_constraint_ids(requests))

    def unavailable_reason(self) -> ApiError | None:
        """Return the error that every new generation gets now, or None if generations are accepted."""
        reasons: dict[str, Literal["loading", "draining", "engine_dead"]] = {
            "loading": "loading",
            "stuck": "engine_dead",
            "restarting": "engine_dead",
            "draining": "draining",
            "dead": "engine_dead",
        }
        phase, exit_code = self._engine.status.phase, self._engine.status.exit_code
        if phase == "dead" and exit_code == 0:
            phase = "draining"  # the engine stopped because the server shuts down
        if phase in reasons:
            return unavailable(reasons[phase], LOADING_RETRY_S if phase in ("loading", "restarting") else GONE_RETRY_S)
        if self._memory is not None and self._memory.level == "critical":
            return overloaded(MEMORY_RETRY_S)
        return None

    def has_room(self, tenant: int, num_choices: int) -> bool:
        """Return whether a new generation of `tenant` with `num_choices` choices keeps the bounds on choices and
        tokens, and on the tenant's share of both.

        Parts of admitted requests come first: those of the same tenant all, and the next one of each other tenant.
        """
        if self._parts.has(tenant) or not self._keeps_share(tenant, num_choices):
            return False
        return self._has_places(num_choices + self._parts.num_reserved)

    def _has_places(self, num_choices: int) -> bool:
        """Return whether `num_choices` more choices keep the bounds on choices and tokens.

        The new prompts' own tokens do not count: otherwise a prompt longer than the bound could never be accepted. So
        at most one request exceeds the bound.
        """
        return self._engine.num_waiting + num_choices <= self._max_choices and self.num_tokens < self.max_tokens

    def _keeps_share(self, tenant: int, num_choices: int) -> bool:
        """Return whether `num_choices` more choices keep the tenant's share of choices and tokens.

        A request with more choices than the share is accepted if its tenant has none waiting, as a long prompt is.
        """
        num_waiting = self._num_choices[tenant]
        keeps_choices = not num_waiting or num_waiting + num_choices <= self._max_per_tenant
        return keeps_choices and self._num_tokens[tenant] < self._max_tokens_per_tenant

    def add(self, request_id: int, tenant: int, num_tokens: int) -> None:
        """Count one choice as waiting. `num_tokens`: the token ids that it carries."""
        self._waiting[request_id] = tenant, num_tokens
        self._num_choices[tenant] += 1
        self._num_tokens[tenant] += num_tokens
        self.num_tokens += num_tokens

    def remove(self, request_id: int) -> None:
        """Stop counting a choice, at its first output or its end. Call it at every output: parts may fit then."""
        waiting = self._waiting.pop(request_id, None)
        if waiting is not None:
            tenant, num_tokens = waiting
            self._num_choices[tenant] -= 1
            self._num_tokens[tenant] -= num_tokens
            self.num_tokens -= num_tokens
        self._parts.choose()

    def retry_after_s(self, num_choices: int = 0) -> float:
        """Estimate the seconds until all waiting choices, and `num_choices` more, have ended."""
        return self.retry_estimator.wait_s(self._engine.num_waiting + num_choices)
