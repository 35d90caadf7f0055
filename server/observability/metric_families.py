"""All metric families, with help texts and buckets. exposition.py adds the label `model_name`."""

from bisect import bisect_left
from collections.abc import Iterable, Iterator
from itertools import accumulate
from typing import Literal, Protocol, get_args

from prometheus_client import Counter, Gauge, Histogram
from prometheus_client.metrics_core import HistogramMetricFamily, Metric
from prometheus_client.utils import floatToGoString

Outcome = Literal["stop", "length", "abort", "timeout", "rejected", "error"]
OUTCOMES: tuple[Outcome, ...] = get_args(Outcome)

# From 1 ms to 10 minutes: a small model answers within a few ms, a large one on two cores within minutes.
SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)
TOKENS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768, 65536)


def _counter(name: str, help_text: str, *labels: str) -> Counter:
    return Counter(name, help_text, labels, registry=None)


def _gauge(name: str, help_text: str, *labels: str) -> Gauge:
    return Gauge(name, help_text, labels, registry=None)


def histogram(name: str, help_text: str, buckets: tuple[float, ...]) -> Histogram:
    return Histogram(name, help_text, registry=None, buckets=buckets)


class Family(Protocol):
    """A metric that prometheus_client can collect."""

    def collect(self) -> Iterable[Metric]: ...


class UnlockedHistogram:
    """Histogram for values that are observed per token or step. It may be used on one thread only."""

    def __init__(self, name: str, help_text: str, buckets: tuple[float, ...]) -> None:
        self._name = name
        self._help_text = help_text
        self._bounds = buckets
        self._counts = [0] * (len(buckets) + 1)
        self._sum = 0.0

    def observe(self, amount: float, times: int = 1) -> None:
        """Count `amount` so many times."""
        self._counts[bisect_left(self._bounds, amount)] += times
        self._sum += amount * times

    def collect(self) -> Iterable[Metric]:
        bounds = [*map(floatToGoString, self._bounds), "+Inf"]
        buckets = list(zip(bounds, map(float, accumulate(self._counts)), strict=True))
        return [HistogramMetricFamily(self._name, self._help_text, buckets, self._sum)]


class FamilyGroup:
    """A group of families. Its attributes are the families."""

    def __iter__(self) -> Iterator[Family]:
        return iter(vars(self).values())


class RequestFamilies(FamilyGroup):
    """Metrics of requests. Each choice counts as one request."""

    def __init__(self) -> None:
        self.received = _counter("smoe_requests_received_total", "Choices of valid requests.")
        self.outcomes = _counter(
            "smoe_requests_total", "Finished choices of valid requests, by outcome; rejected: not admitted.", "outcome"
        )
        self.running = _gauge("smoe_requests_running", "Choices that the engine is running.")
        self.waiting = _gauge("smoe_requests_waiting", "Choices received that the engine is not running yet.")
        self.prompt_tokens = _counter("smoe_prompt_tokens_total", "Prompt tokens of finished choices.")
        self.generation_tokens = _counter("smoe_generation_tokens_total", "Generated tokens of finished choices.")
        self.cached_tokens = _counter("smoe_prompt_tokens_cached_total", "Prompt tokens taken from the prefix cache.")
        self.ttft = histogram("smoe_time_to_first_token_seconds", "Time from HTTP arrival to first token.", SECONDS)
        self.itl = UnlockedHistogram(
            "smoe_inter_token_latency_seconds", "Time between two tokens of a choice.", SECONDS
        )
        self.duration = histogram("smoe_request_duration_seconds", "Time from HTTP arrival to the end.", SECONDS)
        self.queue = histogram("smoe_request_queue_seconds", "Time from arrival to first scheduling.", SECONDS)
        self.prefill = histogram("smoe_request_prefill_seconds", "Time from first scheduling to first token.", SECONDS)
        self.decode = histogram("smoe_request_decode_seconds", "Time from first to last token.", SECONDS)
        self.prompt_len = histogram("smoe_request_prompt_tokens", "Prompt tokens per choice.", TOKENS)
        self.generation_len = histogram("smoe_request_generation_tokens", "Generated tokens per choice.", TOKENS)
        for outcome in OUTCOMES:
            self.outcomes.labels(outcome)


class EngineFamilies(FamilyGroup):
    """Metrics of the engine process: its steps, its KV blocks, its experts, its start."""

    def __init__(self) -> None:
        self.up = _gauge(
            "smoe_engine_up", "1 while the engine serves, 0 while it loads, is stuck, restarts or is dead."
        )
        self.restarts = _counter("smoe_engine_restarts_total", "Engine processes started to replace one that died.")
        self.step_tokens = UnlockedHistogram("smoe_step_tokens", "Token positions computed in one step.", TOKENS)
        self.step_seconds = UnlockedHistogram("smoe_step_seconds", "Duration of one step.", SECONDS)
        self.prompt_tokens = _counter(
            "smoe_step_prompt_tokens_total", "Prompt positions that steps computed, counted at each step."
        )
        self.generated_tokens = _counter(
            "smoe_step_generated_tokens_total", "Tokens that steps generated, counted at each step."
        )
        self.preemptions = _counter(
            "smoe_preemptions_total", "Running choices moved back to the queue because KV blocks ran out."
        )
        self.drafted = _counter("smoe_drafted_tokens_total", "Guessed tokens that steps verified.")
        self.accepted = _counter("smoe_accepted_tokens_total", "Guessed tokens that the model sampled too.")
        self.prefix_queries = _counter(
            "smoe_prefix_cache_queries_total", "Prompt tokens looked up in the prefix cache."
        )
        self.prefix_hits = _counter("smoe_prefix_cache_hits_total", "Prompt tokens found in the prefix cache.")
        self.window_blocks_freed = _counter(
            "smoe_window_blocks_freed_total", "KV blocks freed because they left the sliding window."
        )
        self.kv_usage = _gauge("smoe_kv_cache_usage_ratio", "Fraction of the KV blocks that choices hold, 0 to 1.")
        self.kv_blocks = _gauge(
            "smoe_kv_blocks", "KV blocks by state: held by choices, kept only by the prefix cache, free.", "state"
        )
        self.cache_config = _gauge("smoe_cache_config_info", "Shape of the KV cache.", *CACHE_CONFIG_LABELS)
        self.expert_tokens = _counter(
            "smoe_expert_tokens_total", "Token positions computed, by layer and expert.", "layer", "expert"
        )
        self.expert_imbalance = _gauge(
            "smoe_expert_imbalance_ratio",
            "Tokens of the busiest expert divided by the mean, last minute; 0 without tokens.",
            "layer",
        )
        self.startup = _gauge("smoe_startup_seconds", "Duration of each phase of the start.", "phase")
        self.build = _gauge("smoe_build_info", "Version and numerics.", *BUILD_LABELS)


class PackFamilies(FamilyGroup):
    """Metrics of weights in a pack: what is mapped, and experts that are read when a step needs them."""

    def __init__(self) -> None:
        self.mapped_bytes = _gauge("smoe_weights_mapped_bytes", "Bytes of the weights that are mapped from a pack.")
        self.cached_bytes = _gauge("smoe_weights_cached_bytes", "Bytes of a pack's file that are in memory now.")
        self.expert_hits = _counter(
            "smoe_expert_store_hits_total", "Experts that a layer of a step needed and found in memory."
        )
        self.expert_misses = _counter(
            "smoe_expert_store_misses_total", "Experts that a layer of a step needed and read from the disk."
        )
        self.expert_read_bytes = _counter("smoe_expert_store_read_bytes_total", "Bytes of experts that were read.")
        self.expert_wait = _counter(
            "smoe_expert_store_wait_seconds_total", "Time in which steps waited for experts from the disk."
        )
        self.expert_slots = _gauge(
            "smoe_expert_store_slots", "Experts that fit the memory of --expert-memory; 0 without it."
        )


class ServerFamilies(FamilyGroup):
    """Metrics of the API process."""

    def __init__(self) -> None:
        self.http_requests = _counter(
            "smoe_http_requests_total", "Answered HTTP requests, by route template.", "route", "method", "status"
        )
        self.event_loop_lag = _gauge("smoe_event_loop_lag_seconds", "Longest delay of the event loop in the last 10 s.")
        self.event_loop_tasks = _gauge("smoe_event_loop_tasks", "Tasks of the event loop.")
        self.connections = _gauge("smoe_http_connections", "Open HTTP connections.")


CACHE_CONFIG_LABELS = ("block_size", "num_blocks", "window", "enable_prefix_caching")
BUILD_LABELS = ("version", "device", "backend", "dtype")
