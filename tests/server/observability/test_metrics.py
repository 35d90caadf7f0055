"""server/observability/metrics.py: counts, and that they add up at every scrape."""

import random

import msgspec
import pytest

from engine.messages import Ready
from engine.types import ExpertReads, StepStats, Timing
from server.engine_client.status import EngineStatus
from server.observability.metric_families import OUTCOMES
from tests.support.metric_samples import Clock, fresh, samples
from tests.support.servers.fake_engine import FakeEngine
from tests.support.servers.serving import client_of, http_counts, saying, state_around

READY = Ready(
    max_model_len=2048, max_prompt_tokens=2047, vocab_size=100, eos_token_ids=[2], num_parameters=1, weight_bytes=1,
    kv_cache_bytes=1, kv_bytes_per_token=1, num_blocks=50, block_size=16, num_layers=1, num_experts=8,
    experts_per_token=2, window=256, dtype="float32", device="cpu", backend="reference", fingerprint="f",
    phase_seconds={"weights": 0.5, "warm-up": 0.25},
)  # fmt: skip


def test_received_choices_are_running_waiting_or_ended_at_every_scrape() -> None:
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
        metrics.record_step(StepStats(num_running=draw.randint(0, 10)))  # a step's number may be late or early
        scrape = samples(metrics, "smoe_requests_")
        ended = sum(value for name, value in scrape.items() if name.startswith("smoe_requests_total"))
        waiting, running = scrape["smoe_requests_waiting"], scrape["smoe_requests_running"]
        assert waiting >= 0
        assert running >= 0
        assert waiting + running == open_choices
        assert scrape["smoe_requests_received_total"] == waiting + running + ended


def test_running_is_the_number_of_the_last_step() -> None:
    metrics = fresh()
    metrics.received(5)
    metrics.record_step(StepStats(num_running=3))
    scrape = samples(metrics)
    assert (scrape["smoe_requests_running"], scrape["smoe_requests_waiting"]) == (3, 2)


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
        num_drafted_tokens=9, num_accepted_tokens=7, num_prefill_tokens=12, num_generated_tokens=4,
    )  # fmt: skip
    metrics.record_step(stats)
    metrics.record_step(stats)
    scrape = samples(metrics)
    assert scrape["smoe_step_tokens_sum"] == 32
    assert scrape["smoe_step_seconds_sum"] == 0.5
    assert (scrape["smoe_step_prompt_tokens_total"], scrape["smoe_step_generated_tokens_total"]) == (24, 8)
    assert scrape["smoe_prefix_cache_queries_total"] == 128
    assert scrape["smoe_prefix_cache_hits_total"] == 96
    assert scrape["smoe_preemptions_total"] == 2
    assert scrape["smoe_window_blocks_freed_total"] == 6
    assert scrape["smoe_drafted_tokens_total"] == 18 and scrape["smoe_accepted_tokens_total"] == 14
    assert scrape["smoe_kv_cache_usage_ratio"] == 0.4
    blocks = {state: scrape[f"smoe_kv_blocks{{state={state}}}"] for state in ("held", "cached", "free")}
    assert blocks == {"held": 20, "cached": 5, "free": 25}


def test_reads_of_experts_are_counted() -> None:
    metrics = fresh()
    metrics.engine_ready(
        msgspec.structs.replace(READY, expert_slots=5), version="1", enable_prefix_caching=True, startup_s=1
    )
    for _ in range(2):
        metrics.record_step(StepStats(step_s=0.1, expert_reads=ExpertReads(7, 3, 300, 0.25)))
    scrape = samples(metrics)
    assert scrape["smoe_expert_store_slots"] == 5
    assert (scrape["smoe_expert_store_hits_total"], scrape["smoe_expert_store_misses_total"]) == (14, 6)
    assert scrape["smoe_expert_store_read_bytes_total"] == 600
    assert scrape["smoe_expert_store_wait_seconds_total"] == 0.5


def test_a_message_without_tokens_is_no_step() -> None:
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


def test_a_restart_is_counted_and_the_engine_holds_no_blocks_meanwhile() -> None:
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


def test_a_dead_engine_holds_no_blocks() -> None:
    metrics = fresh()
    metrics.received(1)
    metrics.record_step(StepStats(num_running=1, num_blocks_held=9, num_blocks_total=50))
    metrics.engine_status(EngineStatus("dead"))
    scrape = samples(metrics)
    assert scrape["smoe_engine_up"] == 0
    assert scrape["smoe_requests_running"] == 0
    assert scrape["smoe_kv_cache_usage_ratio"] == 0


def test_unknown_methods_share_one_series() -> None:
    metrics = fresh()
    for number in range(50):
        metrics.http("other", f"BREW{number}", 405)
    scrape = samples(metrics)
    assert scrape["smoe_http_requests_total{method=other,route=other,status=405}"] == 50
    assert sum(name.startswith("smoe_http_requests_total") for name in scrape) == 1


@pytest.mark.anyio
async def test_unknown_paths_share_one_series() -> None:
    state = state_around(FakeEngine(saying("a")))
    async with client_of(state) as client:
        for number in range(1000):
            assert (await client.request("BREW" if number % 2 else "GET", f"/nowhere/{number}")).status_code == 404
    assert http_counts(state) == {("other", "GET", "404"): 500, ("other", "other", "404"): 500}


def test_metrics_count_what_each_expert_took() -> None:
    metrics = fresh()
    for tokens in ([[3, 1], [2, 2]], [[0, 4], [4, 0]]):
        metrics.record_step(StepStats(expert_tokens=tokens))
    metrics.record_step(StepStats())
    found = {
        (sample.name, sample.labels["layer"], sample.labels.get("expert")): sample.value
        for family in metrics.exposition.collect()
        for sample in family.samples
        if "expert" in sample.name and "expert_store" not in sample.name
    }
    counts = {(layer, expert): found["smoe_expert_tokens_total", layer, expert] for layer in "01" for expert in "01"}
    assert counts == {("0", "0"): 3, ("0", "1"): 5, ("1", "0"): 6, ("1", "1"): 2}
    assert found["smoe_expert_imbalance_ratio", "1", None] == 1.5
