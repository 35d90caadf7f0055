"""What the routes work with: made once at start, and handed to the app."""

import random
import secrets
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Literal, Protocol

from starlette.requests import Request as HttpRequest

from engine.messages import Ready
from engine.types import ExpertReport, Request, RequestOutput, StepStats
from server.chat.template import ChatTemplate
from server.engine_client.status import EngineStatus
from server.errors import ApiError, model_not_found, overloaded, queue_full, unavailable
from server.generation.admission import Admission
from server.generation.sampling_params import GenerationDefaults
from server.generation.throughput import RetryEstimator
from server.observability.access_log import AccessLog
from server.observability.memory_pressure import MemoryMonitor
from server.observability.metrics import Metrics
from server.structured_output.grammar_checker import GrammarChecker
from server.tokenizer.tokenizer import Tokenizer

LOADING_RETRY_S = 5.0  # also for an engine that is started again
MEMORY_RETRY_S = 10.0
GONE_RETRY_S = 30.0  # a draining or dead server does not come back by itself, a stuck engine not soon


class OutputStream(Protocol):
    """The outputs of requests submitted together: server.engine_client.output_collector.OutputCollector."""

    async def get(self, until_s: float) -> list[RequestOutput]: ...
    def close(self) -> None: ...


class Engine(Protocol):
    """Interface of the engine for the routes. Contract: see server/engine_client/client.py."""

    stats: StepStats

    @property
    def ready(self) -> Ready | None: ...
    @property
    def status(self) -> EngineStatus: ...
    @property
    def num_waiting(self) -> int: ...
    def new_request_id(self) -> int: ...
    def submit(self, requests: Sequence[Request]) -> OutputStream: ...
    def abort(self, request_ids: Iterable[int]) -> None: ...
    async def experts(self, window_s: float | None, *, reset: bool = False) -> ExpertReport: ...


@dataclass(frozen=True)
class TextFrontend:
    """The checkpoint's text side."""

    tokenizer: Tokenizer
    chat_template: ChatTemplate
    defaults: GenerationDefaults

    @cached_property
    def grammars(self) -> GrammarChecker:
        """Made when first needed: it holds a copy of the vocabulary."""
        return GrammarChecker(self.tokenizer)


def seed_source(seed: int | None) -> Callable[[], int]:
    """Draws 63-bit seeds: from the operating system, or a sequence that `seed` determines."""
    if seed is None:
        return lambda: secrets.randbits(63)
    return partial(random.Random(seed).getrandbits, 63)


@dataclass
class ServerState:
    """One server. `texts` may be set later than the rest: the port answers before the model is loaded."""

    engine: Engine
    metrics: Metrics
    access_log: AccessLog
    model_names: tuple[str, ...]  # the first is the model's id, the others are aliases
    max_num_queued: int  # choices that may wait for the engine
    version: str
    created_s: int  # unix time, of the models' entries
    draw_seed: Callable[[], int] = field(default_factory=lambda: seed_source(None))  # for requests that bring none
    by_priority: bool = True  # else requests run in the order of their arrival
    strict_params: bool = False  # what would be ignored is refused
    tool_emulation: bool = False  # a model that was not taught to call tools may decide to, asked in words
    strict_roles: bool = False  # conversations whose roles do not alternate are refused, not repaired
    texts: TextFrontend | None = None
    throughput: RetryEstimator = field(default_factory=RetryEstimator)
    max_num_queued_tokens: int | None = None  # of the prompts that wait; None: derived from max_num_queued
    num_tenants: int = 1
    memory: MemoryMonitor | None = None

    @cached_property
    def backlog(self) -> Admission:
        """What waits for its first output."""
        return Admission(self.max_num_queued, self.max_num_queued_tokens, self.num_tenants)

    def serving(self) -> tuple[Ready, TextFrontend]:
        """What a request is prepared with. Raises ApiError 503 where there is no model yet, or none any more."""
        if self.engine.ready is None or self.texts is None:
            raise self.refusal() or unavailable("loading", LOADING_RETRY_S)
        return self.engine.ready, self.texts

    def refusal(self) -> ApiError | None:
        """Why no request is taken now, whatever it is; None where requests are taken."""
        reasons: dict[str, Literal["loading", "draining", "engine_dead"]] = {
            "loading": "loading",
            "stuck": "engine_dead",
            "restarting": "engine_dead",
            "draining": "draining",
            "dead": "engine_dead",
        }
        phase, exit_code = self.engine.status.phase, self.engine.status.exit_code
        if phase == "dead" and exit_code == 0:
            phase = "draining"  # it was told to go
        if phase in reasons:
            return unavailable(reasons[phase], LOADING_RETRY_S if phase in ("loading", "restarting") else GONE_RETRY_S)
        if self.memory is not None and self.memory.level == "critical":
            return overloaded(MEMORY_RETRY_S)
        return None

    def check_queue(self, http_id: str) -> None:
        """Raises ApiError 429 where not one choice more would be taken, before a request costs anything. It counts as
        one choice: how many it asks for is not known."""
        num_waiting = self.engine.num_waiting
        if num_waiting < self.max_num_queued and self.backlog.num_tokens < self.backlog.max_tokens:
            return
        if self.refusal() is None:
            self.metrics.received(1)
            self.metrics.finished("rejected")
            self.access_log.finished(http_id, "rejected")
            raise queue_full(self.throughput.wait_s(num_waiting + 1))

    def check_model(self, name: str) -> None:
        """Raises ApiError 404 for a name that is not served, compared as it is spelled."""
        if name not in self.model_names:
            raise model_not_found()


def tenant_of(request: HttpRequest) -> int:
    """Whose request it is: its API key's place among the keys, 0 where there are none."""
    tenant: int = getattr(request.state, "tenant", 0)
    return tenant


def state_of(request: HttpRequest) -> ServerState:
    """The state that the app was made with."""
    state: ServerState = request.app.state.smoe
    return state
