"""The state of one server, shared by its routes: the engine's client, the text frontend, the server's settings."""

import random
import secrets
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Protocol

from starlette.requests import Request as HttpRequest

from engine.messages import Ready
from engine.types import ExpertReport, Request, RequestOutput, StepStats
from server.chat.template import ChatTemplate
from server.errors import model_not_found, queue_full, unavailable
from server.fairness.byte_budget import ByteBudget
from server.fairness.heavy_work import HeavyWork
from server.fairness.loop_turns import LoopTurns
from server.fairness.refusal_pace import RefusalPace
from server.fairness.request_memory import Lease
from server.generation.admission import LOADING_RETRY_S, Admission, EngineLoad
from server.generation.generation_defaults import GenerationDefaults
from server.generation.reply_size import MAX_REPLY_VALUES
from server.observability.memory_pressure import MemoryMonitor
from server.observability.metrics import Metrics
from server.sandbox.pool import Sandbox
from server.structured_output.grammar_checker import GrammarChecker
from server.tokenizer.tokenizer import Tokenizer

NUM_DIGITS = 12  # of an adapter's digest in a fingerprint
MAX_UNLOADED = 1024  # names of unloaded adapters that are remembered, for error messages
MAX_TOTAL_PROMPT_IDS = 2**22  # of a request's prompts times its choices: each choice carries its prompt to the engine


class OutputStream(Protocol):
    """The outputs of requests that were submitted together: server.engine_client.output_collector.OutputCollector."""

    @property
    def has_backlog(self) -> bool: ...
    async def get(self, until_s: float) -> list[RequestOutput]: ...
    def close(self) -> None: ...


class Engine(EngineLoad, Protocol):
    """The part of the engine's client that routes and generations use. The contract: server.engine_client.client."""

    stats: StepStats

    @property
    def ready(self) -> Ready | None: ...
    def new_request_id(self) -> int: ...
    def submit(self, requests: Sequence[Request]) -> OutputStream: ...
    def abort(self, request_ids: Iterable[int]) -> None: ...
    async def experts(self, window_s: float | None, *, reset: bool = False) -> ExpertReport: ...
    @property
    def loading_adapters(self) -> frozenset[str]: ...
    async def load_adapter(self, name: str, directory: str) -> None: ...
    def unload_adapter(self, name: str) -> None: ...
    def hold_adapter(self, digest: str) -> None: ...
    def release_adapter(self, digest: str) -> None: ...


@dataclass(frozen=True)
class TextFrontend:
    """The text side of a checkpoint: tokenizer, chat template, generation defaults."""

    tokenizer: Tokenizer
    chat_template: ChatTemplate
    defaults: GenerationDefaults
    sandbox: Sandbox  # where untrusted or long work on texts runs
    # Of the engine, whose config names end tokens too; None: the tokenizer's.
    vocab_size: int | None = None
    end_ids: tuple[int, ...] | None = None

    def for_engine(self, ready: Ready) -> "TextFrontend":
        """Return the same for an engine that is ready: grammars are checked as it follows them."""
        return replace(self, vocab_size=ready.vocab_size, end_ids=tuple(ready.eos_token_ids))

    @cached_property
    def grammars(self) -> GrammarChecker:
        """Checker of grammars."""
        return GrammarChecker(self.tokenizer, self.sandbox, vocab_size=self.vocab_size, end_ids=self.end_ids)


def seed_source(seed: int | None) -> Callable[[], int]:
    """Return a function that draws 63-bit seeds: from the operating system, or in a sequence determined by `seed`."""
    if seed is None:
        return lambda: secrets.randbits(63)
    return partial(random.Random(seed).getrandbits, 63)


@dataclass(frozen=True)
class LoraOptions:
    """The server's settings for LoRA adapters."""

    names: tuple[str, ...] = ()  # of those that are loaded with the model
    at_run_time: bool = False  # others may be loaded, and all unloaded, while the server runs


NO_LORA = LoraOptions()


@dataclass
class ServerState:
    """The state of one server. `texts` may be set later: the port answers before the model is loaded."""

    engine: Engine
    metrics: Metrics
    model_names: tuple[str, ...]  # the first is the model's id, the others are aliases
    max_num_queued: int  # choices that may wait for the engine
    version: str
    created_s: int  # Unix time, for the entries of /v1/models
    lora: LoraOptions = NO_LORA
    adapters_loaded_s: dict[tuple[str, str], int] = field(default_factory=dict)  # Unix times, by name and digest
    reply_memory: ByteBudget = field(default_factory=lambda: ByteBudget(2**62))  # of log probabilities and expert ids
    max_reply_values: int = MAX_REPLY_VALUES  # of one reply
    max_total_prompt_ids: int = MAX_TOTAL_PROMPT_IDS
    turns: LoopTurns = field(default_factory=LoopTurns)  # for long work on the event loop
    draw_seed: Callable[[], int] = field(default_factory=lambda: seed_source(None))  # for requests without a seed
    by_priority: bool = True  # if false, requests run in the order of their arrival
    strict_params: bool = False  # reject requests with fields that would be ignored
    tool_emulation: bool = False  # describe tools in the prompt to models that were not trained for tool calls
    embeddings: bool = False  # embed with a model that was not trained for it, too
    strict_roles: bool = False  # reject conversations whose roles do not alternate, instead of repairing them
    texts: TextFrontend | None = None
    max_num_queued_tokens: int | None = None  # of the prompts that wait; None: derived from max_num_queued
    num_tenants: int = 1
    memory: MemoryMonitor | None = None
    _unloaded: deque[str] = field(default_factory=lambda: deque(maxlen=MAX_UNLOADED))  # names of adapters

    @cached_property
    def heavy_work(self) -> HeavyWork:
        """Runs long work on texts and JSON."""
        return HeavyWork(self.num_tenants)

    @cached_property
    def refusal_pace(self) -> RefusalPace:
        """Delays refusals."""
        return RefusalPace(self.num_tenants)

    @cached_property
    def admission(self) -> Admission:
        """Decides which generations are accepted."""
        return Admission(
            self.engine, self.max_num_queued, self.max_num_queued_tokens, self.num_tenants, memory=self.memory
        )

    def serving(self) -> tuple[Ready, TextFrontend]:
        """Return the loaded model's description and its text frontend. Raises ApiError 503 while no model is loaded."""
        if self.engine.ready is None or self.texts is None:
            raise self.admission.unavailable_reason() or unavailable("loading", LOADING_RETRY_S)
        return self.engine.ready, self.texts

    async def check_queue(self, tenant: int, num_choices: int = 1) -> None:
        """Raise ApiError 429 if the queue has no room for the tenant's choices, before a request costs more work. A
        tenant that is refused often gets it later.

        `num_choices`: 1 before the body is read; the metrics count a request that is refused then as one choice.
        """
        admission = self.admission
        if admission.unavailable_reason() is not None or num_choices > admission.max_choices_of_request:
            return  # other errors, which are raised later
        if not admission.has_room(tenant, num_choices):
            self.metrics.rejected(num_choices)
            await self.refusal_pace.wait(tenant)
            raise queue_full(admission.retry_after_s(num_choices))

    @property
    def calls_tools(self) -> bool:
        """True if the model may call tools; False while it loads, unless they are emulated."""
        return self.tool_emulation or (self.texts is not None and self.texts.chat_template.takes_tools)

    @property
    def embeds(self) -> bool:
        """True if texts are embedded; False while the model loads, unless a flag asks for it."""
        return self.embeddings or (self.engine.ready is not None and self.engine.ready.embeds)

    @property
    def adapter_names(self) -> tuple[str, ...]:
        """Names of the LoRA adapters; while the model loads, of those that will be loaded."""
        ready = self.engine.ready
        names = self.lora.names if ready is None else ready.adapters
        return tuple(name for name in names if name not in self.model_names)

    @property
    def all_names(self) -> tuple[str, ...]:
        """Names of the model, and then of its adapters."""
        return self.model_names + self.adapter_names

    def unload_adapter(self, name: str) -> None:
        """Take an adapter's name away. Later requests for it, such as the lines of a batch, are told what happened."""
        self.engine.unload_adapter(name)
        self._unloaded.append(name)

    def date_adapters(self, now_s: int) -> None:
        """Date the adapters that are new, or have other files than before, and forget those that are gone."""
        if self.engine.ready is not None:
            dates = self.adapters_loaded_s
            self.adapters_loaded_s = {key: dates.get(key, now_s) for key in self.engine.ready.adapters.items()}

    def served_name(self, name: str | None) -> str:
        """Return the name of the model or adapter as the request has it, or the model's id if the request names none.

        Raises ApiError 404 for a name that is not served. Names are case-sensitive.
        """
        if name is not None and name not in self.all_names:
            raise model_not_found(self.all_names, was_unloaded=name in self._unloaded)
        return self.model_names[0] if name is None else name

    def adapter_of(self, name: str | None) -> str:
        """Return the digest of the adapter with this name; empty for the model alone, and while it loads."""
        ready = self.engine.ready
        return "" if name is None or ready is None or name in self.model_names else ready.adapters.get(name, "")


def hold_adapter(http: HttpRequest, name: str | None) -> str:
    """Return the digest of the adapter that a request names, as adapter_of() does, and keep the adapter until the
    request has ended: its texts may take long before anything is queued, and a list of texts is queued in parts."""
    state = state_of(http)
    digest = state.adapter_of(name)
    lease: Lease | None = getattr(http.state, "lease", None)
    if digest and lease is not None:
        state.engine.hold_adapter(digest)
        lease.on_close(lambda: state.engine.release_adapter(digest))
    return digest


def fingerprint_of(ready: Ready, adapter: str) -> str:
    """Return the fingerprint of the model with the adapter of this digest; if empty, the model's own."""
    return f"{ready.fingerprint}-lora-{adapter[:NUM_DIGITS]}" if adapter else ready.fingerprint


def tenant_of(request: HttpRequest) -> int:
    """Return the tenant of a request: the index of its API key, or 0 if the server has no keys."""
    tenant: int = getattr(request.state, "tenant", 0)
    return tenant


def state_of(request: HttpRequest) -> ServerState:
    """Return the state of the server that handles this request."""
    state: ServerState = request.app.state.smoe
    return state
