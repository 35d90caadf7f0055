"""The engine: plan, launch, sample, apply, in process and without I/O. engine/process.py puts it behind a socket."""

import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from engine.capacity.expert_options import ExpertLayout, resolve_experts
from engine.capacity.machine.host_resources import memory_limit_bytes
from engine.capacity.new_scheduler import make_scheduler
from engine.config import EngineConfig
from engine.errors import FatalEngineError, PeerClosedError, RequestRejectedError
from engine.execution.experts.reads import ExpertReadCounter
from engine.execution.step_pipeline import StepPipeline
from engine.grammars.build_queue import GrammarQueue
from engine.grammars.mask_budget import MaskBudget
from engine.grammars.matcher import GrammarCompiler
from engine.grammars.parser_limits import max_parsers
from engine.heartbeat import Heartbeat
from engine.messages import AdapterLoaded, LoadAdapter
from engine.scheduling.sequence import Matcher
from engine.scheduling.step_plan import NO_DRAFTS, DraftCounts, StepPlan
from engine.speculation.draft_source import MAX_TOKEN_ID
from engine.speculation.row_times import time_shape
from engine.speculation.speculator import Speculator
from engine.startup.adapters import AdapterLoading
from engine.startup.assembly import LoadedModel, ProgressCallback
from engine.startup.loading import load
from engine.types import Request, RequestOutput, StepOutput, StepStats, Timing, Vocabulary

GRAMMAR_WAIT_S = 0.005  # longest wait of an empty step for a grammar that is built; then new requests are received

NOT_QUEUED = "the engine failed while it queued this request"
NOT_LOADED = "the request's LoRA adapter is not loaded any more"

log = logging.getLogger("smoe.engine")


class Engine:
    """Owns scheduler and model. Single-threaded: the caller calls add(), abort() and step() in turn."""

    def __init__(
        self,
        config: EngineConfig,
        loaded: LoadedModel,
        vocabulary: Vocabulary | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`clock` is the clock of the requests' deadlines."""
        self.config = config
        self.loaded = loaded
        self.experts = loaded.runner.experts
        self.experts.pop_new_counts()  # drop the counts of the warm-up
        self.experts.reset()
        self._expert_reads = ExpertReadCounter(loaded.expert_store)
        self.on_prefill_start: Callable[[list[int]], None] = lambda request_ids: None  # called before a step
        self.on_plan: Callable[[StepPlan], None] = lambda plan: None  # likewise
        self._clock = clock
        self._expert_layout = _expert_layout(loaded)
        self._rejected: list[RequestOutput] = []
        on_gpu = loaded.device.type != "cpu"
        is_overlapped = on_gpu and loaded.ranks is None  # a step that is told to ranks waits for the one before
        is_asynchronous = is_overlapped if config.async_scheduling is None else config.async_scheduling
        self._pipeline = StepPipeline(loaded.runner, is_asynchronous)
        has_equal_bits = loaded.backend == "native"
        can_draft = has_equal_bits and not is_asynchronous and loaded.config.vocab_size <= MAX_TOKEN_ID
        drafter = _speculator(loaded) if can_draft and config.speculation == "auto" else None
        self.scheduler = make_scheduler(config, loaded.config, loaded.limits, drafter)
        self._adapter_loading = AdapterLoading(config, loaded.config, loaded.device.type, loaded.bytes_for_adapters)
        self._adapter_names: dict[int, str] = {}  # of those that are being loaded, by query
        self._masks = MaskBudget()
        self._grammars = GrammarQueue(
            _compiler(vocabulary, loaded) if vocabulary else None,
            max_parsers(memory_limit_bytes(), loaded.limits.memory_share),
            config.num_tenants,
        )

    @classmethod
    def load(
        cls,
        config: EngineConfig,
        on_progress: ProgressCallback = lambda phase, done, total: None,
        *,
        vocabulary: Vocabulary | None = None,
        heartbeat: Heartbeat | None = None,
        end_ids: Sequence[int] = (),
    ) -> "Engine":
        """Load a checkpoint. Requests with a grammar need `vocabulary`. Loading and computing advance `heartbeat`.

        `end_ids`: tokens that end an answer by the tokenizer; those of the checkpoint's config files always do.

        Raises CheckpointError or EngineConfigError, each with one line for the person at the terminal."""
        engine = cls(config, load(config, on_progress, heartbeat, end_ids), vocabulary)
        engine.loaded.read_ahead()  # last, because its threads take the cores from a start
        return engine

    def add(self, request: Request) -> None:
        """Queue a request, or compile its grammar first if it has one. The output of the next step reports a request
        that can never run as an error."""
        if request.grammar is None:
            self._queue(request)
        else:
            self._grammars.submit(request)

    def _queue(self, request: Request, matcher: Matcher | None = None) -> None:
        try:
            _check_ids(request, self.loaded.config.vocab_size)
            _check_embedding(request, self.loaded.config.dim)
            if request.adapter and request.adapter not in self.loaded.runner.adapters:
                raise RequestRejectedError(NOT_LOADED)
            self.scheduler.add(resolve_experts(request, self._expert_layout), matcher)
        except RequestRejectedError as error:
            self._reject(request, str(error))
        except Exception:
            log.exception("request %d could not be queued; it ends with an error", request.request_id)
            self._reject(request, NOT_QUEUED)

    def _reject(self, request: Request, message: str) -> None:
        timing = Timing(request.arrival_s, finished_s=self._clock())
        output = RequestOutput(request.request_id, finish_reason="error", error=message, timing=timing)
        self._rejected.append(output)

    def _queue_compiled(self) -> None:
        """Queue the requests whose grammar is compiled. Without other work, wait GRAMMAR_WAIT_S for one."""
        if not self._grammars:
            return
        if not self.scheduler.has_work():
            self._grammars.wait(GRAMMAR_WAIT_S)
        for compiled in self._grammars.pop_completed():
            if compiled.error is None:
                self._queue(compiled.request, compiled.matcher)
            else:
                self._reject(compiled.request, compiled.error)

    def load_adapter(self, query: LoadAdapter) -> None:
        """Begin to load a LoRA adapter; pop_loaded_adapters() returns the answer."""
        self._adapter_names[query.query_id] = query.name
        self._adapter_loading.submit(query.query_id, Path(query.directory))

    @property
    def is_loading_adapters(self) -> bool:
        return bool(len(self._adapter_loading))

    def pop_loaded_adapters(self) -> list[AdapterLoaded]:
        """Add the adapters that are loaded now, and return the answers to their queries."""
        answers = []
        for query_id, loaded in self._adapter_loading.pop_completed():
            name = self._adapter_names.pop(query_id)
            if isinstance(loaded, str):
                answers.append(AdapterLoaded(query_id, error=loaded))
            else:
                self._adapter_loading.free(self.loaded.runner.add_adapter(name, loaded))
                answers.append(AdapterLoaded(query_id, loaded.digest))
        return answers

    def unload_adapter(self, digest: str) -> None:
        """Free the memory of an adapter that no request has any more."""
        self._adapter_loading.free(self.loaded.runner.unload_adapter(digest))

    def abort(self, request_id: int) -> None:
        """End a request without an output. Unknown and finished ids are ignored."""
        if not self._grammars.cancel(request_id):
            self.scheduler.abort(request_id)

    def is_compiling_aborted(self, request_id: int) -> bool:
        """Return True if the grammar of this aborted request is still being compiled. It is no work for step()."""
        return self._grammars.is_compiling(request_id)

    def has_work(self) -> bool:
        return bool(self._rejected or self._grammars or self._pipeline.in_flight) or self.scheduler.has_work()

    def step(self) -> StepOutput:
        """Compute one step. An exception in it ends the requests that caused it (execution/fault_isolation.py); the
        others continue. Raises FatalEngineError when the engine must end.

        With asynchronous scheduling the step is launched and the results of the step before it are returned, so that
        the device computes while the host plans. The tokens are the same as without.
        """
        try:
            return self._step()
        except (FatalEngineError, PeerClosedError):
            raise
        except Exception as error:  # in planning or bookkeeping, whose state cannot be trusted any more
            raise _untrusted(error) from error

    def _step(self) -> StepOutput:
        start = self._clock()
        freed_before = self.scheduler.block_manager.num_window_blocks_freed
        self._queue_compiled()
        expired = self.scheduler.expire(start)
        self._masks.share_out(self.scheduler.requests.running)
        plan = self.scheduler.plan(start, self._masks)
        if not plan.chunks and not self._pipeline.in_flight:
            self._masks.wait(GRAMMAR_WAIT_S)
        if starting := [chunk.sequence.request_id for chunk in plan.chunks if chunk.is_prefill]:
            self.on_prefill_start(starting)
        self.on_plan(plan)
        results = self._pipeline.advance(plan)
        end = self._clock()
        outputs = self._take_rejected() + expired
        drafts = NO_DRAFTS
        for completed, result in results:
            outputs += self.scheduler.apply(completed, result, end)
            drafts = drafts.plus(completed, result)
        if self.config.check_integrity:
            self.scheduler.check_integrity()
        freed = self.scheduler.block_manager.num_window_blocks_freed - freed_before
        stats = self._stats(plan, end - start, freed, self.experts.pop_due_counts(), outputs, drafts)
        return StepOutput(outputs, stats)

    def check_integrity(self) -> None:
        """Raise FatalEngineError if a KV block is lost or counted wrongly."""
        try:
            self.scheduler.check_integrity()
        except AssertionError as error:
            raise _untrusted(error) from error

    def _take_rejected(self) -> list[RequestOutput]:
        rejected, self._rejected = self._rejected, []
        return rejected

    def stats(self) -> StepStats:
        """Return the gauges and the unreported expert counts, as after a step that computed nothing."""
        return self._stats(StepPlan(()), 0.0, 0, self.experts.pop_new_counts() if self.experts.has_unreported else None)

    def _stats(
        self,
        plan: StepPlan,
        step_s: float,
        freed: int,
        expert_tokens: list[list[int]] | None,
        outputs: Sequence[RequestOutput] = (),
        drafts: DraftCounts = NO_DRAFTS,
    ) -> StepStats:
        pool = self.scheduler.block_manager.pool
        return StepStats(
            num_running=len(self.scheduler.requests.running),
            num_waiting=len(self.scheduler.requests.waiting) + len(self._grammars),
            num_blocks_held=pool.num_held,
            num_blocks_cached=pool.num_cached,
            num_blocks_total=pool.num_blocks,
            step_s=step_s,
            num_tokens=plan.num_tokens - plan.num_drafted + drafts.num_accepted,
            num_prefill_tokens=plan.num_prefill_tokens,
            num_prefix_queries=plan.num_prefix_queries,
            num_prefix_hits=plan.num_prefix_hits,
            num_preemptions=plan.num_preemptions,
            num_window_blocks_freed=freed,
            num_generated_tokens=sum(len(output.token_ids) for output in outputs),
            num_drafted_tokens=drafts.num_drafted,
            num_accepted_tokens=drafts.num_accepted,
            expert_tokens=expert_tokens,
            expert_reads=self._expert_reads.pop(),
        )


def _untrusted(error: Exception) -> FatalEngineError:
    return FatalEngineError(f"the engine's bookkeeping failed: {type(error).__name__}: {error}")


def _check_ids(request: Request, vocab_size: int) -> None:
    """Raise RequestRejectedError for a token id outside the vocabulary; it would make the whole step fail."""
    ids = request.prompt_token_ids
    if ids and not 0 <= min(ids) <= max(ids) < vocab_size:
        raise RequestRejectedError(f"the prompt has token ids outside of the model's 0 to {vocab_size - 1}")
    predicted = request.prediction_token_ids
    if predicted and not 0 <= min(predicted) <= max(predicted) < vocab_size:
        raise RequestRejectedError(f"the prediction has token ids outside of the model's 0 to {vocab_size - 1}")


def _check_embedding(request: Request, dim: int) -> None:
    """Raise RequestRejectedError for an embedding that is longer than the model's, or beside generated tokens."""
    if request.embedding_len is None:
        return
    if not 1 <= request.embedding_len <= dim:
        raise RequestRejectedError(f"an embedding of this model has 1 to {dim} numbers")
    if request.params.max_tokens:
        raise RequestRejectedError("a request for an embedding generates no tokens: max_tokens must be 0")


def _expert_layout(loaded: LoadedModel) -> ExpertLayout:
    model = loaded.config
    return ExpertLayout(model.num_layers, model.num_experts, model.experts_per_token)


def _speculator(loaded: LoadedModel) -> Speculator:
    return Speculator(time_shape(loaded.config.num_experts, loaded.config.experts_per_token))


def _compiler(vocabulary: Vocabulary, loaded: LoadedModel) -> GrammarCompiler:
    return GrammarCompiler(vocabulary, loaded.config.vocab_size, loaded.config.eos_token_ids)
