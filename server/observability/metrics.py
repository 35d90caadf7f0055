"""Count what the server does. All metrics live in the API process, on one thread."""

import time
from collections.abc import Callable, Iterator
from typing import Literal

from engine.messages import Ready
from engine.types import ExpertReads, StepStats, Timing
from server.engine_client.status import EngineStatus
from server.observability.expert_load import ExpertLoad
from server.observability.exposition import Exposition
from server.observability.load import Load
from server.observability.metric_families import EngineFamilies, Outcome, PackFamilies, RequestFamilies, ServerFamilies
from server.observability.recent_load import RecentLoad
from server.observability.vllm_families import VllmFamilies

HTTP_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


class Metrics:
    """The metrics of /metrics. At every scrape, received = running + waiting + all outcomes.

    This holds because waiting is derived: choices that were received and have no outcome are open; those of them that
    the engine's last step did not run are waiting.
    """

    def __init__(
        self,
        model_name: str,
        compat: Literal["vllm", "none"] = "vllm",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`compat` "vllm" adds vLLM's names. `clock` returns monotonic seconds."""
        self._requests = RequestFamilies()
        self._engine = EngineFamilies()
        self._pack = PackFamilies()
        self._server = ServerFamilies()
        self._stats = StepStats()
        self._experts = ExpertLoad(clock)
        self.recent = RecentLoad(clock)
        self._num_open = 0
        self._block_size = 0  # of the KV cache; 0 until an engine is ready
        self._vllm = VllmFamilies()
        own = (self._requests, self._engine, self._pack, self._server)
        groups = (*own, self._vllm) if compat == "vllm" else own
        self.exposition = Exposition(groups, model_name, compat, clock, self._update_gauges)

    @property
    def load(self) -> Load:
        """Load at this moment, with the numbers of running choices and KV blocks of the engine's last step."""
        stats = self._stats
        num_running = min(stats.num_running, self._num_open)
        usage = stats.num_blocks_held / max(1, stats.num_blocks_total)
        return Load(self._num_open - num_running, num_running, usage, self._block_size, stats.num_blocks_total)

    def received(self, num_choices: int) -> None:
        """Count the choices of a valid request. Each must end in one call of `finished`."""
        self._requests.received.inc(num_choices)
        self._num_open += num_choices

    def finished(
        self,
        outcome: Outcome,
        *,
        num_prompt_tokens: int = 0,
        num_generation_tokens: int = 0,
        num_cached_tokens: int = 0,
        timing: Timing | None = None,
        max_tokens: int | None = None,
        num_choices: int | None = None,
    ) -> None:
        """Count the end of one choice. `timing` is None if the choice never reached the engine.

        `max_tokens`: its limit. `num_choices`: those of its prompt, for the first one of them; else None.
        """
        families = self._requests
        self._num_open -= 1
        families.outcomes.labels(outcome).inc()
        families.prompt_tokens.inc(num_prompt_tokens)
        families.generation_tokens.inc(num_generation_tokens)
        families.cached_tokens.inc(num_cached_tokens)
        if timing is not None:
            families.prompt_len.observe(num_prompt_tokens)
            families.generation_len.observe(num_generation_tokens)
            self._observe_timing(timing)
            self._vllm.record_end(timing, num_generation_tokens, max_tokens, num_choices)

    def rejected(self, num_choices: int) -> None:
        """Count the choices of a request that was not admitted, as received and ended."""
        self._requests.received.inc(num_choices)
        self._requests.outcomes.labels("rejected").inc(num_choices)

    def inter_token(self, seconds: float, times: int = 1) -> None:
        """Count intervals between tokens of one choice; tokens that arrive together share their mean interval."""
        self._requests.itl.observe(seconds, times)

    def http(self, route: str, method: str, status: int) -> None:
        """Count an answered HTTP request. `route` is a template ("/v1/models/{model_id}") or "other", never a path."""
        known_method = method if method in HTTP_METHODS else "other"
        self._server.http_requests.labels(route, known_method, str(status)).inc()

    def record_step(self, stats: StepStats) -> None:
        """Count one engine step."""
        self._stats = stats
        self._vllm.record_step(stats)
        self.recent.add_step(stats)
        families = self._engine
        if stats.num_tokens:
            families.step_tokens.observe(stats.num_tokens)
            families.step_seconds.observe(stats.step_s)
        for family, count in (
            (families.prompt_tokens, stats.num_prefill_tokens),
            (families.generated_tokens, stats.num_generated_tokens),
            (families.prefix_queries, stats.num_prefix_queries),
            (families.prefix_hits, stats.num_prefix_hits),
            (families.preemptions, stats.num_preemptions),
            (families.drafted, stats.num_drafted_tokens),
            (families.accepted, stats.num_accepted_tokens),
            (families.window_blocks_freed, stats.num_window_blocks_freed),
        ):
            if count:  # most are 0 in most steps, and each call takes a lock
                family.inc(count)
        if stats.expert_tokens is not None:
            self._record_experts(stats.expert_tokens)
        if stats.expert_reads is not None:
            self._record_reads(stats.expert_reads)

    def _record_experts(self, tokens: list[list[int]]) -> None:
        """Add the token counts of a step, [layers][experts]."""
        self._experts.add(tokens)
        for layer, counts in enumerate(tokens):
            for expert, count in enumerate(counts):
                self._engine.expert_tokens.labels(str(layer), str(expert)).inc(count)

    def _record_reads(self, reads: ExpertReads) -> None:
        families = self._pack
        families.expert_hits.inc(reads.num_hits)
        families.expert_misses.inc(reads.num_misses)
        families.expert_read_bytes.inc(reads.num_bytes)
        families.expert_wait.inc(reads.waited_s)

    def engine_status(self, status: EngineStatus) -> None:
        """Record the engine's new phase."""
        self._engine.up.set(status.phase in ("ready", "draining"))
        if status.phase in ("restarting", "dead"):
            self._stats = StepStats(num_blocks_total=self._stats.num_blocks_total)

    def engine_restarted(self) -> None:
        """Count the start of a replacement engine process."""
        self._engine.restarts.inc()

    def engine_ready(self, ready: Ready, *, version: str, enable_prefix_caching: bool, startup_s: float) -> None:
        """Record the fixed properties of an engine that is ready. `startup_s`: duration of the whole start."""
        self._stats = StepStats(num_blocks_total=ready.num_blocks)
        self._block_size = ready.block_size
        families = self._engine
        window = "none" if ready.window is None else str(ready.window)
        prefix_caching = str(enable_prefix_caching).lower()
        families.cache_config.clear()  # of an engine before this one, which may have had more blocks
        families.cache_config.labels(str(ready.block_size), str(ready.num_blocks), window, prefix_caching).set(1)
        families.build.labels(version, ready.device, ready.backend, ready.dtype).set(1)
        self._pack.mapped_bytes.set(ready.mapped_bytes)
        self._pack.expert_slots.set(ready.expert_slots)
        for phase, seconds in {**ready.phase_seconds, "total": startup_s}.items():
            families.startup.labels(phase).set(seconds)

    def weights_cached(self, num_bytes: int) -> None:
        """Record the bytes of a pack's file that are in memory."""
        self._pack.cached_bytes.set(num_bytes)

    def event_loop_lag(self, seconds: float) -> None:
        """Record the longest recent delay of the event loop."""
        self._server.event_loop_lag.set(seconds)

    def watch(self, *, num_connections: Callable[[], int], num_tasks: Callable[[], int]) -> None:
        """Set the functions that each scrape calls for the numbers of open connections and tasks."""
        self._server.connections.set_function(num_connections)
        self._server.event_loop_tasks.set_function(num_tasks)

    def _observe_timing(self, timing: Timing) -> None:
        families = self._requests
        spans = (
            (families.ttft, timing.arrival_s, timing.first_token_s),
            (families.queue, timing.arrival_s, timing.first_scheduled_s),
            (families.prefill, timing.first_scheduled_s, timing.first_token_s),
            (families.decode, timing.first_token_s, timing.finished_s),
            (families.duration, timing.arrival_s, timing.finished_s),
        )
        for histogram, start_s, end_s in spans:
            if start_s is not None and end_s is not None:
                histogram.observe(end_s - start_s)

    def _update_gauges(self) -> None:
        load = self.load
        self._requests.running.set(load.num_running)
        self._requests.waiting.set(load.num_waiting)
        self._engine.kv_usage.set(load.kv_usage)
        for state, num_blocks in _blocks_by_state(self._stats):
            self._engine.kv_blocks.labels(state).set(num_blocks)
        for layer, ratio in enumerate(self._experts.imbalance()):
            self._engine.expert_imbalance.labels(str(layer)).set(ratio)


def _blocks_by_state(stats: StepStats) -> Iterator[tuple[str, int]]:
    yield "held", stats.num_blocks_held
    yield "cached", stats.num_blocks_cached
    yield "free", stats.num_blocks_total - stats.num_blocks_held - stats.num_blocks_cached
