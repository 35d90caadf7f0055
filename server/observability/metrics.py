"""What the server counts, and the text that Prometheus scrapes. One registry, in the API process, on one thread."""

import time
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from typing import Literal

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from engine.messages import Ready
from engine.types import StepStats, Timing
from server.engine_client.status import EngineStatus
from server.observability.expert_load import ExpertLoad
from server.observability.metric_families import EngineFamilies, Outcome, RequestFamilies, ServerFamilies
from server.observability.vllm_metric_names import aliased

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
MIN_RENDER_INTERVAL_S = 1.0
HTTP_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


class Metrics(Collector):
    """The counters behind /metrics. The ledger: received = running + waiting + all outcomes, at every scrape.

    It holds by derivation: what is received and has no outcome yet is open, running is what the engine's last step
    says of it, and waiting is the rest.
    """

    def __init__(
        self,
        model_name: str,
        compat: Literal["vllm", "none"] = "vllm",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`compat` "vllm" adds vLLM's names. `clock` gives monotonic seconds."""
        self._model_name = model_name
        self._compat = compat
        self._clock = clock
        self._requests = RequestFamilies()
        self._engine = EngineFamilies()
        self._server = ServerFamilies()
        self._stats = StepStats()
        self._experts = ExpertLoad(clock)
        self._num_open = 0
        self._rendered = b""
        self._rendered_at_s = -MIN_RENDER_INTERVAL_S
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(self)

    def received(self, num_choices: int) -> None:
        """Choices of a request that is parsed and valid: each must end in one call of `finished`."""
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
    ) -> None:
        """One choice ended. `timing` holds what is known of it; None for one that never reached the engine."""
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

    def inter_token(self, seconds: float, times: int = 1) -> None:
        """The time between two tokens of one choice; of several that came together, the mean time of each."""
        self._requests.itl.observe(seconds, times)

    def http(self, route: str, method: str, status: int) -> None:
        """One HTTP request answered. `route` is a template ("/v1/models/{model_id}") or "other", never a path."""
        known_method = method if method in HTTP_METHODS else "other"
        self._server.http_requests.labels(route, known_method, str(status)).inc()

    def record_step(self, stats: StepStats) -> None:
        """One engine step."""
        self._stats = stats
        families = self._engine
        if stats.num_tokens:
            families.step_tokens.observe(stats.num_tokens)
            families.step_seconds.observe(stats.step_s)
        families.prefix_queries.inc(stats.num_prefix_queries)
        families.prefix_hits.inc(stats.num_prefix_hits)
        families.preemptions.inc(stats.num_preemptions)
        families.window_blocks_freed.inc(stats.num_window_blocks_freed)
        if stats.expert_tokens is not None:
            self._record_experts(stats.expert_tokens)

    def _record_experts(self, tokens: list[list[int]]) -> None:
        """[layers][experts], new ones."""
        self._experts.add(tokens)
        for layer, of_layer in enumerate(tokens):
            for expert, count in enumerate(of_layer):
                self._engine.expert_tokens.labels(str(layer), str(expert)).inc(count)

    def engine_status(self, status: EngineStatus) -> None:
        """The engine's phase changed."""
        self._engine.up.set(status.phase in ("ready", "draining"))
        if status.phase in ("restarting", "dead"):
            self._stats = StepStats(num_blocks_total=self._stats.num_blocks_total)

    def engine_restarted(self) -> None:
        """Another engine process is started in place of one that died."""
        self._engine.restarts.inc()

    def engine_ready(self, ready: Ready, *, version: str, enable_prefix_caching: bool, startup_s: float) -> None:
        """The engine serves: its fixed properties. `startup_s` is the whole start's duration."""
        self._stats = StepStats(num_blocks_total=ready.num_blocks)
        families = self._engine
        window = "none" if ready.window is None else str(ready.window)
        prefix_caching = str(enable_prefix_caching).lower()
        families.cache_config.labels(str(ready.block_size), str(ready.num_blocks), window, prefix_caching).set(1)
        families.build.labels(version, ready.device, ready.backend, ready.dtype).set(1)
        for phase, seconds in {**ready.phase_seconds, "total": startup_s}.items():
            families.startup.labels(phase).set(seconds)

    def event_loop_lag(self, seconds: float) -> None:
        """The longest delay of the event loop lately."""
        self._server.event_loop_lag.set(seconds)

    def watch(self, *, num_connections: Callable[[], int], num_tasks: Callable[[], int]) -> None:
        """Whom to ask at each scrape for what is open in this process."""
        self._server.connections.set_function(num_connections)
        self._server.event_loop_tasks.set_function(num_tasks)

    def render(self) -> bytes:
        """The scrape, in Prometheus' text format 0.0.4. Made at most once a second; in between, the same bytes."""
        now = self._clock()
        if now - self._rendered_at_s >= MIN_RENDER_INTERVAL_S:
            self._rendered = generate_latest(self._registry)
            self._rendered_at_s = now
        return self._rendered

    def collect(self) -> Iterable[Metric]:
        """prometheus_client's seam: the families of this moment."""
        self._set_gauges()
        groups = chain(self._requests, self._engine, self._server)
        families = [self._exposed(family) for group in groups for family in group.collect()]
        return chain(families, aliased(families) if self._compat == "vllm" else ())

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

    def _set_gauges(self) -> None:
        stats = self._stats
        running = min(stats.num_running, self._num_open)
        self._requests.running.set(running)
        self._requests.waiting.set(self._num_open - running)
        self._engine.kv_usage.set(stats.num_blocks_held / max(1, stats.num_blocks_total))
        for state, num_blocks in _blocks_by_state(stats):
            self._engine.kv_blocks.labels(state).set(num_blocks)
        for layer, ratio in enumerate(self._experts.imbalance()):
            self._engine.expert_imbalance.labels(str(layer)).set(ratio)

    def _exposed(self, family: Metric) -> Metric:
        """The family with the model's name on each sample, without prometheus_client's _created series."""
        exposed = Metric(family.name, family.documentation, family.type)
        for sample in family.samples:
            if not sample.name.endswith("_created"):
                exposed.add_sample(sample.name, {"model_name": self._model_name, **sample.labels}, sample.value)
        return exposed


def _blocks_by_state(stats: StepStats) -> Iterator[tuple[str, int]]:
    yield "held", stats.num_blocks_held
    yield "cached", stats.num_blocks_cached
    yield "free", stats.num_blocks_total - stats.num_blocks_held - stats.num_blocks_cached
