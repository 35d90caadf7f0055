"""The engine: plan -> run -> sample -> apply. In process, without I/O; engine/process.py puts it behind a socket."""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version

from engine.config import EngineConfig
from engine.errors import FatalEngineError, PeerClosedError, RequestRejectedError
from engine.execution.expert_stats import ExpertStats
from engine.execution.fault_isolation import isolate_faults
from engine.execution.model_runner import InFlightStep
from engine.execution.step_faults import StepFault, catch_fault
from engine.expert_options import ExpertLayout, resolve_experts
from engine.grammars.build_queue import GrammarQueue
from engine.grammars.matcher import GrammarCompiler
from engine.heartbeat import Heartbeat
from engine.messages import Ready
from engine.scheduling.sequence import Matcher
from engine.scheduling.step_plan import StepPlan, StepResult
from engine.startup.loading import LoadedModel, ProgressCallback, load, make_scheduler
from engine.types import ExpertReport, Request, RequestOutput, StepOutput, StepStats, Timing, Vocabulary

GRAMMAR_WAIT_S = 0.005  # how long a step with nothing to compute waits for a grammar: then arrivals get a look

NOT_QUEUED = "the engine failed while it queued this request"

log = logging.getLogger("smoe.engine")


@dataclass(frozen=True)
class PendingStep:
    """A step that was launched, or what is left of it where that failed."""

    plan: StepPlan
    step: InFlightStep | StepResult


class Engine:
    """Owns scheduler and model. Single-threaded: add(), abort() and step() are called in turn."""

    def __init__(
        self,
        config: EngineConfig,
        loaded: LoadedModel,
        vocabulary: Vocabulary | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`clock`: the one by which deadlines of requests are told."""
        self.config = config
        self.loaded = loaded
        self._clock = clock
        self.scheduler = make_scheduler(config, loaded.config, loaded.limits)
        model = loaded.config
        self.expert_shape = ExpertLayout(model.num_layers, model.num_experts, model.experts_per_token)
        self._new_expert_tokens()  # the warm-up's are nobody's
        self.reset_experts()
        self._rejected: list[RequestOutput] = []
        self._in_flight: list[PendingStep] = []  # at most one step
        on_gpu = loaded.device.type != "cpu"
        self._is_asynchronous = on_gpu if config.async_scheduling is None else config.async_scheduling
        self.on_prefill_start: Callable[[list[int]], None] = lambda request_ids: (
            None
        )  # told whose prompts a step will compute
        self._grammars = GrammarQueue(_compiler(vocabulary, loaded) if vocabulary else None)

    @classmethod
    def load(
        cls,
        config: EngineConfig,
        on_progress: ProgressCallback = lambda phase, done, total: None,
        *,
        vocabulary: Vocabulary | None = None,
        heartbeat: Heartbeat | None = None,
    ) -> "Engine":
        """`vocabulary`: what requests with a grammar need. `heartbeat` is moved on while it loads and computes.

        Raises model.errors.CheckpointError or EngineConfigError, one line each for the person at the terminal."""
        return cls(config, load(config, on_progress, heartbeat), vocabulary)

    def add(self, request: Request) -> None:
        """Queues a request, one with a grammar once its matcher is built. One that can never run gets its error with
        the next step's output."""
        if request.grammar is None:
            self._queue(request)
        else:
            self._grammars.start(request)

    def _queue(self, request: Request, matcher: Matcher | None = None) -> None:
        try:
            _check_ids(request, self.loaded.config.vocab_size)
            self.scheduler.add(resolve_experts(request, self.expert_shape), matcher)
        except RequestRejectedError as error:
            self._reject(request, str(error))
        except Exception:
            log.exception("request %d could not be queued; it ends with an error", request.request_id)
            self._reject(request, NOT_QUEUED)

    def _reject(self, request: Request, message: str) -> None:
        timing = Timing(request.arrival_s, finished_s=self._clock())
        output = RequestOutput(request.request_id, finish_reason="error", error=message, timing=timing)
        self._rejected.append(output)

    def _queue_built(self) -> None:
        """Those whose matchers are there. With nothing else to do, waits a moment for one."""
        if self._grammars and not self.scheduler.has_work():
            self._grammars.wait(GRAMMAR_WAIT_S)
        for built in self._grammars.take_built():
            if built.error is None:
                self._queue(built.request, built.matcher)
            else:
                self._reject(built.request, built.error)

    def abort(self, request_id: int) -> None:
        """Ends a request without an output. Unknown and finished ids are ignored."""
        if not self._grammars.forget(request_id):
            self.scheduler.abort(request_id)

    def has_work(self) -> bool:
        return bool(self._rejected or self._grammars or self._in_flight) or self.scheduler.has_work()

    def step(self) -> StepOutput:
        """Computes one step. An exception in it ends the requests that caused it (execution/fault_isolation.py);
        the others continue. Raises FatalEngineError when the engine must end.

        With asynchronous scheduling it launches one step and tells of the one before, so that the device has work while
        the host plans. The tokens are those of the plain loop.
        """
        try:
            return self._step()
        except (FatalEngineError, PeerClosedError):
            raise
        except Exception as error:  # planning, or book-keeping: what it has left behind is not to be trusted
            raise FatalEngineError(f"the engine's book-keeping failed: {type(error).__name__}: {error}") from error

    def _step(self) -> StepOutput:
        start = self._clock()
        freed_before = self.scheduler.block_manager.num_window_blocks_freed
        self._queue_built()
        expired = self.scheduler.expire(start)
        plan = self.scheduler.plan(start)
        if starting := [chunk.sequence.request_id for chunk in plan.chunks if chunk.is_prefill]:
            self.on_prefill_start(starting)
        completed = self._launch(plan)
        results = [(flight.plan, self._finish(flight)) for flight in completed]
        end = self._clock()
        outputs = self._take_rejected() + expired
        for landed, result in results:
            outputs += self.scheduler.apply(landed, result, end)
        if self.config.check_integrity:
            self.scheduler.check_integrity()
        freed = self.scheduler.block_manager.num_window_blocks_freed - freed_before
        return StepOutput(outputs, self._stats(plan, end - start, freed, self._new_expert_tokens(only_if_due=True)))

    def _launch(self, plan: StepPlan) -> list[PendingStep]:
        """Gives the plan to the device; returns what is to land now. That is every step where a request found no block:
        those that could make room for it must not be in flight when the next step is planned."""
        launched = [self._launch_step(plan)] if plan.chunks else []
        completed = self._in_flight + launched
        keeps_one = self._is_asynchronous and launched and not plan.num_blocked
        self._in_flight = completed[-1:] if keeps_one else []
        return completed[:-1] if keeps_one else completed

    def _launch_step(self, plan: StepPlan) -> PendingStep:
        if plan.blocks_to_zero:  # once, however often the step is tried: the one behind it may write to these blocks
            self.loaded.runner.zero_blocks(plan.blocks_to_zero)
        step = catch_fault(lambda: self.loaded.runner.launch(plan))
        return PendingStep(plan, self._isolate_faults(plan, step) if isinstance(step, StepFault) else step)

    def _finish(self, flight: PendingStep) -> StepResult:
        step = flight.step
        if isinstance(step, StepResult):
            return step
        result = catch_fault(lambda: self.loaded.runner.finish(step))
        return self._isolate_faults(flight.plan, result) if isinstance(result, StepFault) else result

    def _isolate_faults(self, plan: StepPlan, fault: StepFault) -> StepResult:
        return isolate_faults(self.loaded.runner.run, plan, fault)

    def _take_rejected(self) -> list[RequestOutput]:
        rejected, self._rejected = self._rejected, []
        return rejected

    def stats(self) -> StepStats:
        """The gauges, and what the experts took since last told, as after a step that computed nothing."""
        return self._stats(StepPlan(()), 0.0, 0, self._new_expert_tokens() if self.has_untold_experts() else None)

    def experts(self, window_s: float | None = None) -> ExpertReport:
        """What the experts took of all positions computed here, those computed again included."""
        if self._expert_counts is None:
            return ExpertReport(time.time(), [])
        return self._expert_counts.report(window_s, time.monotonic(), time.time())

    def reset_experts(self) -> ExpertReport:
        """Counts from zero again; the report is that of an engine that has computed nothing."""
        if self._expert_counts is not None:
            self._expert_counts.reset(time.monotonic(), time.time())
        return self.experts()

    def has_untold_experts(self) -> bool:
        """Whether stats() has something new to tell of the experts."""
        return self._expert_counts is not None and self._expert_counts.has_unreported

    @property
    def _expert_counts(self) -> ExpertStats | None:
        """The runner's: None where the network has no experts, or where counting them has failed."""
        return self.loaded.runner.expert_counts

    def _new_expert_tokens(self, *, only_if_due: bool = False) -> list[list[int]] | None:
        counts, now_s = self._expert_counts, time.monotonic()
        if counts is None or (only_if_due and not counts.is_due(now_s)):
            return None
        new = catch_fault(lambda: counts.pop_new_counts(now_s))
        if isinstance(new, StepFault):  # requests do not depend on it: the counts end and they go on
            log.error("experts are no longer counted: %s\n%s", new.summary, new.trace)
            self.loaded.runner.expert_counts = None
            return None
        return new

    def _stats(
        self, plan: StepPlan, step_s: float, freed: int, expert_tokens: list[list[int]] | None = None
    ) -> StepStats:
        pool = self.scheduler.block_manager.pool
        return StepStats(
            num_running=len(self.scheduler.requests.running),
            num_waiting=len(self.scheduler.requests.waiting) + len(self._grammars),
            num_blocks_held=pool.num_held,
            num_blocks_cached=pool.num_cached,
            num_blocks_total=pool.num_blocks,
            step_s=step_s,
            num_tokens=plan.num_tokens,
            num_prefill_tokens=sum(chunk.length for chunk in plan.chunks if chunk.is_prefill),
            num_prefix_queries=plan.num_prefix_queries,
            num_prefix_hits=plan.num_prefix_hits,
            num_preemptions=plan.num_preemptions,
            num_window_blocks_freed=freed,
            expert_tokens=expert_tokens,
        )

    def ready(self) -> Ready:
        """What the API process must know of this engine."""
        loaded, model, limits = self.loaded, self.loaded.config, self.loaded.limits
        return Ready(
            max_model_len=limits.max_model_len,
            max_prompt_tokens=limits.max_prompt_tokens,
            vocab_size=model.vocab_size,
            eos_token_ids=list(model.eos_token_ids),
            num_parameters=model.num_parameters(),
            weight_bytes=loaded.weight_bytes,
            kv_cache_bytes=loaded.kv_block_bytes * (limits.num_blocks + 1),
            kv_bytes_per_token=model.kv_bytes_per_token(loaded.kv_dtype),
            num_blocks=limits.num_blocks,
            block_size=self.config.block_size,
            num_layers=model.num_layers,
            num_experts=model.num_experts,
            experts_per_token=model.experts_per_token,
            window=model.window,
            dtype=str(loaded.dtype).removeprefix("torch."),
            device=str(loaded.device),
            backend=loaded.backend,
            fingerprint=self.fingerprint(),
            phase_seconds=loaded.phase_seconds,
            warnings=list(loaded.warnings),
            quantization=self.config.quantization,
        )

    def fingerprint(self) -> str:
        """Names the numerics. (The reference backend promises no equal bits across batches.)"""
        loaded = self.loaded
        dtype = str(loaded.dtype).removeprefix("torch.")
        window = "none" if loaded.config.window is None else loaded.config.window
        k = "" if self.config.experts_per_token is None else f"-k-{self.config.experts_per_token}"
        return f"smoe-{version('smoe')}-{loaded.numerics}-{dtype}-kv-{loaded.kv_dtype}-window-{window}{k}"


def _check_ids(request: Request, vocab_size: int) -> None:
    """An id that the network has no row for would make the whole step raise."""
    ids = request.prompt_token_ids
    if ids and not 0 <= min(ids) <= max(ids) < vocab_size:
        raise RequestRejectedError(f"the prompt has token ids outside of the model's 0 to {vocab_size - 1}")


def _compiler(vocabulary: Vocabulary, loaded: LoadedModel) -> GrammarCompiler:
    return GrammarCompiler(vocabulary, loaded.config.vocab_size, loaded.config.eos_token_ids)
