"""The scrape: what it counts, that it adds up, and that vLLM's names have the same values."""

import random
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import Histogram
from prometheus_client.parser import text_string_to_metric_families

from engine.messages import Ready
from engine.types import StepStats, Timing
from server.engine_client.status import EngineStatus
from server.observability.metric_families import OUTCOMES, SECONDS, TokenHistogram
from server.observability.metrics import Metrics

READY = Ready(
    max_model_len=2048, max_prompt_tokens=2047, vocab_size=100, eos_token_ids=[2], num_parameters=1, weight_bytes=1,
    kv_cache_bytes=1, kv_bytes_per_token=1, num_blocks=50, block_size=16, num_layers=1, num_experts=8,
    experts_per_token=2, window=256, dtype="float32", device="cpu", backend="reference", fingerprint="f",
    phase_seconds={"weights": 0.5, "warm-up": 0.25},
)  # fmt: skip


@dataclass
class Clock:
    now: float = 100.0

    def __call__(self) -> float:
        return self.now


def samples(metrics: Metrics) -> dict[str, float]:
    """Every sample of a fresh scrape, as `name{label=value,...}` without the model's name."""
    found = {}
    for family in text_string_to_metric_families(metrics.exposition.render().decode()):
        for sample in family.samples:
            assert sample.labels.pop("model_name") == "m"
            labels = ",".join(f"{name}={value}" for name, value in sorted(sample.labels.items()))
            key = f"{sample.name}{{{labels}}}" if labels else sample.name
            assert key not in found, f"{key} stands twice in the scrape"
            found[key] = sample.value
    return found


def fresh(**kwargs: object) -> Metrics:
    return Metrics("m", **kwargs)  # type: ignore[arg-type]


def test_the_ledger_adds_up_at_every_scrape() -> None:
    draw = random.Random(7)
    clock = Clock()
    metrics = fresh(clock=clock)
    open_choices = 0
    for _ in range(200):
        clock.now += 2.0
        if draw.random() < 0.5:
            metrics.received(count := draw.randint(1, 8))
            open_choices += count
        elif open_choices:
            metrics.finished(draw.choice(OUTCOMES))
            open_choices -= 1
        metrics.record_step(StepStats(num_running=draw.randint(0, 10)))  # late or early: never to be trusted alone
        scrape = samples(metrics)
        ended = sum(value for name, value in scrape.items() if name.startswith("smoe_requests_total"))
        waiting, running = scrape["smoe_requests_waiting"], scrape["smoe_requests_running"]
        assert waiting >= 0
        assert running >= 0
        assert waiting + running == open_choices
        assert scrape["smoe_requests_received_total"] == waiting + running + ended


def test_running_is_what_the_last_step_says() -> None:
    metrics = fresh()
    metrics.received(5)
    metrics.record_step(StepStats(num_running=3))
    scrape = samples(metrics)
    assert (scrape["smoe_requests_running"], scrape["smoe_requests_waiting"]) == (3, 2)


def test_every_outcome_is_there_from_the_start() -> None:
    scrape = samples(fresh())
    assert {f"smoe_requests_total{{outcome={outcome}}}" for outcome in OUTCOMES} <= set(scrape)


def test_token_totals_are_the_sums_over_choices() -> None:
    metrics = fresh()
    metrics.received(2)
    metrics.finished("stop", num_prompt_tokens=10, num_generation_tokens=5, num_cached_tokens=8, timing=Timing(0.0))
    metrics.finished("abort", num_prompt_tokens=20, num_generation_tokens=1, num_cached_tokens=16, timing=Timing(0.0))
    scrape = samples(metrics)
    assert scrape["smoe_prompt_tokens_total"] == 30
    assert scrape["smoe_generation_tokens_total"] == 6
    assert scrape["smoe_prompt_tokens_cached_total"] == 24
    assert scrape["smoe_request_prompt_tokens_sum"] == 30
    assert scrape["smoe_request_generation_tokens_count"] == 2


def test_spans_are_measured_between_the_right_moments() -> None:
    metrics = fresh()
    metrics.finished("stop", timing=Timing(10.0, 10.5, 12.5, 20.5))
    scrape = samples(metrics)
    assert scrape["smoe_request_queue_seconds_sum"] == 0.5
    assert scrape["smoe_request_prefill_seconds_sum"] == 2.0
    assert scrape["smoe_request_decode_seconds_sum"] == 8.0
    assert scrape["smoe_time_to_first_token_seconds_sum"] == 2.5
    assert scrape["smoe_request_duration_seconds_sum"] == 10.5


def test_a_span_that_never_ended_is_not_measured() -> None:
    metrics = fresh()
    metrics.finished("abort", timing=Timing(10.0, 10.5, None, 11.0))
    scrape = samples(metrics)
    assert scrape["smoe_request_queue_seconds_count"] == 1
    assert scrape["smoe_time_to_first_token_seconds_count"] == 0
    assert scrape["smoe_request_decode_seconds_count"] == 0


def test_a_millisecond_has_a_bucket_of_its_own() -> None:
    metrics = fresh()
    metrics.inter_token(0.0009)
    metrics.inter_token(0.0019)
    scrape = samples(metrics)
    assert scrape["smoe_inter_token_latency_seconds_bucket{le=0.001}"] == 1
    assert scrape["smoe_inter_token_latency_seconds_bucket{le=0.002}"] == 2


def test_steps_move_the_engine_families() -> None:
    metrics = fresh()
    stats = StepStats(
        num_blocks_held=20, num_blocks_cached=5, num_blocks_total=50, step_s=0.25, num_tokens=16,
        num_prefix_queries=64, num_prefix_hits=48, num_preemptions=1, num_window_blocks_freed=3,
    )  # fmt: skip
    metrics.record_step(stats)
    metrics.record_step(stats)
    scrape = samples(metrics)
    assert scrape["smoe_step_tokens_sum"] == 32
    assert scrape["smoe_step_seconds_sum"] == 0.5
    assert scrape["smoe_prefix_cache_queries_total"] == 128
    assert scrape["smoe_prefix_cache_hits_total"] == 96
    assert scrape["smoe_preemptions_total"] == 2
    assert scrape["smoe_window_blocks_freed_total"] == 6
    assert scrape["smoe_kv_cache_usage_ratio"] == 0.4
    blocks = {state: scrape[f"smoe_kv_blocks{{state={state}}}"] for state in ("held", "cached", "free")}
    assert blocks == {"held": 20, "cached": 5, "free": 25}


def test_a_message_without_work_is_no_step() -> None:
    metrics = fresh()
    metrics.record_step(StepStats(num_blocks_total=50))
    assert samples(metrics)["smoe_step_tokens_count"] == 0


def test_a_ready_engine_is_described() -> None:
    metrics = fresh()
    metrics.engine_status(EngineStatus("loading"))
    assert samples(fresh())["smoe_engine_up"] == 0
    metrics.engine_status(EngineStatus("ready"))
    metrics.engine_ready(READY, version="1.2", enable_prefix_caching=True, startup_s=1.5)
    scrape = samples(metrics)
    assert scrape["smoe_engine_up"] == 1
    assert scrape["smoe_cache_config_info{block_size=16,enable_prefix_caching=true,num_blocks=50,window=256}"] == 1
    assert scrape["vllm:cache_config_info{block_size=16,enable_prefix_caching=true,num_gpu_blocks=50,window=256}"] == 1
    assert scrape["smoe_build_info{backend=reference,device=cpu,dtype=float32,version=1.2}"] == 1
    assert scrape["smoe_startup_seconds{phase=warm-up}"] == 0.25
    assert scrape["smoe_startup_seconds{phase=total}"] == 1.5


def test_an_engine_that_is_started_again_is_counted_and_holds_nothing_meanwhile() -> None:
    clock = Clock()
    metrics = fresh(clock=clock)
    metrics.engine_status(EngineStatus("ready"))
    metrics.received(3)
    metrics.record_step(StepStats(num_running=2, num_blocks_held=5, num_blocks_total=10, num_preemptions=1))
    ups = []
    for phase in ("stuck", "ready", "restarting"):
        metrics.engine_status(EngineStatus(phase))  # type: ignore[arg-type]
        clock.now += 2
        ups.append(samples(metrics)["smoe_engine_up"])
    assert ups == [0, 1, 0]
    metrics.engine_restarted()
    clock.now += 2
    found = samples(metrics)
    assert found["smoe_engine_restarts_total"] == 1
    assert found["smoe_kv_cache_usage_ratio"] == 0
    assert (found["smoe_requests_running"], found["smoe_requests_waiting"]) == (0, 3)
    assert found["smoe_preemptions_total"] == 1


def test_a_dead_engine_holds_nothing() -> None:
    metrics = fresh()
    metrics.received(1)
    metrics.record_step(StepStats(num_running=1, num_blocks_held=9, num_blocks_total=50))
    metrics.engine_status(EngineStatus("dead"))
    scrape = samples(metrics)
    assert scrape["smoe_engine_up"] == 0
    assert scrape["smoe_requests_running"] == 0
    assert scrape["smoe_kv_cache_usage_ratio"] == 0


# wire.md's table, written out: own name with labels, vLLM's name with labels.
SAME_VALUES = [
    ("smoe_requests_running", "vllm:num_requests_running"),
    ("smoe_requests_waiting", "vllm:num_requests_waiting"),
    ("smoe_kv_cache_usage_ratio", "vllm:kv_cache_usage_perc"),
    ("smoe_prompt_tokens_total", "vllm:prompt_tokens_total"),
    ("smoe_generation_tokens_total", "vllm:generation_tokens_total"),
    ("smoe_prompt_tokens_cached_total", "vllm:prompt_tokens_cached_total"),
    ("smoe_prefix_cache_queries_total", "vllm:prefix_cache_queries_total"),
    ("smoe_prefix_cache_hits_total", "vllm:prefix_cache_hits_total"),
    ("smoe_preemptions_total", "vllm:num_preemptions_total"),
    ("smoe_requests_total{outcome=stop}", "vllm:request_success_total{finished_reason=stop}"),
    ("smoe_requests_total{outcome=length}", "vllm:request_success_total{finished_reason=length}"),
    ("smoe_requests_total{outcome=abort}", "vllm:request_success_total{finished_reason=abort}"),
    ("smoe_time_to_first_token_seconds_sum", "vllm:time_to_first_token_seconds_sum"),
    ("smoe_inter_token_latency_seconds_sum", "vllm:inter_token_latency_seconds_sum"),
    ("smoe_request_duration_seconds_sum", "vllm:e2e_request_latency_seconds_sum"),
    ("smoe_request_queue_seconds_sum", "vllm:request_queue_time_seconds_sum"),
    ("smoe_request_prefill_seconds_sum", "vllm:request_prefill_time_seconds_sum"),
    ("smoe_request_decode_seconds_sum", "vllm:request_decode_time_seconds_sum"),
    ("smoe_step_tokens_sum", "vllm:iteration_tokens_total_sum"),
    ("smoe_step_tokens_bucket{le=16.0}", "vllm:iteration_tokens_total_bucket{le=16.0}"),
    ("smoe_request_prompt_tokens_sum", "vllm:request_prompt_tokens_sum"),
    ("smoe_request_generation_tokens_count", "vllm:request_generation_tokens_count"),
    (
        "smoe_http_requests_total{method=GET,route=/ping,status=200}",
        "http_requests_total{handler=/ping,method=GET,status=200}",
    ),
]


def busy(compat: str) -> Metrics:
    metrics = fresh(compat=compat)
    metrics.received(40)
    for number, outcome in enumerate(OUTCOMES, start=1):
        for _ in range(number):
            metrics.finished(
                outcome,
                num_prompt_tokens=7,
                num_generation_tokens=3,
                num_cached_tokens=5,
                timing=Timing(1.0, 1.5, 3.5, 8.0),
            )
    metrics.record_step(
        StepStats(
            num_running=2, num_blocks_held=3, num_blocks_total=8, step_s=0.1, num_tokens=9, num_prefix_queries=11,
            num_prefix_hits=4, num_preemptions=6,
        )
    )  # fmt: skip
    metrics.inter_token(0.02)
    metrics.http("/ping", "GET", 200)
    return metrics


@pytest.mark.parametrize(("own", "theirs"), SAME_VALUES)
def test_vllm_dashboards_see_the_same_values(own: str, theirs: str) -> None:
    scrape = samples(busy("vllm"))
    assert scrape[own] == scrape[theirs]
    assert scrape[own] > 0


def test_vllm_counts_only_its_own_finish_reasons() -> None:
    scrape = samples(busy("vllm"))
    reasons = [name for name in scrape if name.startswith("vllm:request_success_total")]
    assert len(reasons) == 3


def test_without_compat_only_own_names_are_shown() -> None:
    assert all(name.startswith("smoe_") for name in samples(busy("none")))


def test_a_second_scrape_within_a_second_gets_the_same_bytes() -> None:
    clock = Clock()
    metrics = fresh(clock=clock)
    first = metrics.exposition.render()
    metrics.received(1)
    clock.now += 0.99
    assert metrics.exposition.render() is first
    clock.now += 0.02
    assert b'smoe_requests_received_total{model_name="m"} 1.0' in metrics.exposition.render()


def test_made_up_methods_do_not_make_series() -> None:
    metrics = fresh()
    for number in range(50):
        metrics.http("other", f"BREW{number}", 405)
    scrape = samples(metrics)
    assert scrape["smoe_http_requests_total{method=other,route=other,status=405}"] == 50
    assert sum(name.startswith("smoe_http_requests_total") for name in scrape) == 1


@given(st.lists(st.tuples(st.floats(0, 700), st.integers(1, 4)), max_size=30))
def test_the_token_histogram_counts_as_prometheus_clients_does(observed: list[tuple[float, int]]) -> None:
    ours = TokenHistogram("gap_seconds", "Gaps.", SECONDS)
    theirs = Histogram("gap_seconds", "Gaps.", buckets=SECONDS, registry=None)
    for amount, times in [*observed, (0.01, 1), (600.0, 1)]:  # two of the bounds themselves
        ours.observe(amount, times)
        for _ in range(times):
            theirs.observe(amount)
    samples = [
        {
            (s.name, s.labels.get("le")): s.value
            for f in h.collect()
            for s in f.samples
            if not s.name.endswith("created")
        }
        for h in (ours, theirs)
    ]
    assert samples[0] == pytest.approx(samples[1])
