"""server/observability/vllm_metric_names.py: the values under vLLM's names are smoe's own."""

import pytest

from engine.types import StepStats, Timing
from server.observability.metric_families import OUTCOMES
from server.observability.metrics import Metrics
from tests.support.metric_samples import fresh, samples

# smoe's name with labels, vLLM's name with labels.
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
def test_each_alias_has_the_value_of_smoes_own_metric(own: str, theirs: str) -> None:
    scrape = samples(busy("vllm"))
    assert scrape[own] == scrape[theirs]
    assert scrape[own] > 0


def test_only_vllms_finish_reasons_are_counted_under_its_name() -> None:
    scrape = samples(busy("vllm"))
    reasons = [name for name in scrape if name.startswith("vllm:request_success_total")]
    assert len(reasons) == 3


def test_without_compat_all_names_are_smoes_own() -> None:
    assert all(name.startswith("smoe_") for name in samples(busy("none")))
