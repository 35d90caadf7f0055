"""server/observability/vllm_families.py: the histograms that vLLM's dashboards show, with vLLM's values."""

from dataclasses import replace

import pytest

from engine.types import StepStats, Timing
from tests.support.metric_samples import fresh, samples
from tests.support.servers.fake_engine import FakeEngine
from tests.support.servers.serving import MODEL, client_of, saying, state_around


def test_a_choice_is_counted_with_its_times_and_limits() -> None:
    metrics = fresh(compat="vllm")
    metrics.received(2)
    timing = Timing(1.0, 1.5, 3.5, 8.0)
    metrics.finished("stop", num_generation_tokens=10, timing=timing, max_tokens=16, num_choices=2)
    metrics.finished("stop", num_generation_tokens=1, timing=timing, max_tokens=16)
    scrape = samples(metrics)
    assert scrape["vllm:request_time_per_output_token_seconds_sum"] == (8.0 - 3.5) / 9
    assert scrape["vllm:request_inference_time_seconds_sum"] == 2 * (8.0 - 1.5)
    assert scrape["vllm:request_max_num_generation_tokens_sum"] == 11
    assert (scrape["vllm:request_params_n_sum"], scrape["vllm:request_params_n_count"]) == (2, 1)
    assert (scrape["vllm:request_params_max_tokens_sum"], scrape["vllm:request_params_max_tokens_count"]) == (32, 2)


def test_a_step_counts_prompt_tokens_and_generated_tokens() -> None:
    metrics = fresh(compat="vllm")
    for stats in (StepStats(num_tokens=7, num_prefill_tokens=7, num_generated_tokens=1), StepStats(num_tokens=1)):
        metrics.record_step(stats)
    scrape = samples(metrics)
    assert (scrape["vllm:iteration_tokens_total_sum"], scrape["vllm:iteration_tokens_total_count"]) == (8, 1)


def test_without_vllms_names_there_are_none_of_its_families() -> None:
    assert not [name for name in samples(fresh(compat="none")) if name.startswith("vllm")]


@pytest.mark.anyio
async def test_requests_are_counted_by_prompt_and_by_choice() -> None:
    state = replace(state_around(FakeEngine(saying("a"))), metrics=fresh(compat="vllm"))
    async with client_of(state) as client:
        await client.post("/v1/completions", json={"model": MODEL, "prompt": ["a", "b"], "n": 3, "max_tokens": 5})
    scrape = samples(state.metrics)
    assert (scrape["vllm:request_params_n_sum"], scrape["vllm:request_params_n_count"]) == (6, 2)
    assert (scrape["vllm:request_params_max_tokens_sum"], scrape["vllm:request_params_max_tokens_count"]) == (30, 6)
