"""server/observability/load.py: gauges for routers, as an independent parser of Prometheus' format reads them."""

import pytest
from prometheus_client.parser import text_string_to_metric_families

from engine.types import StepStats
from server.observability.load import Load, render_load
from tests.support.metric_samples import fresh, samples
from tests.support.servers.fake_engine import READY

LARGEST = Load(10**9, 10**9, 1 / 3, 10**6, 10**12)


def read(text: bytes) -> dict[str, tuple[float, dict[str, str]]]:
    """Return value and labels of each family; every family must be a gauge with exactly one sample."""
    found = {}
    for family in text_string_to_metric_families(text.decode()):
        [sample] = family.samples
        assert (family.type, sample.name) == ("gauge", family.name)
        found[sample.name] = (sample.value, sample.labels)
    return found


def test_each_family_of_the_endpoint_pickers_contract_has_one_sample() -> None:
    assert read(render_load(Load(3, 2, 0.25, 16, 64))) == {
        "vllm:num_requests_waiting": (3, {}),
        "vllm:num_requests_running": (2, {}),
        "vllm:kv_cache_usage_perc": (0.25, {}),
        "vllm:cache_config_info": (1, {"block_size": "16", "num_gpu_blocks": "64"}),
    }


def test_the_shape_of_the_cache_is_left_out_until_a_model_is_loaded() -> None:
    assert "vllm:cache_config_info" not in read(render_load(fresh().load))


def test_the_text_is_at_most_a_kibibyte() -> None:
    assert len(render_load(LARGEST)) <= 1024
    assert read(render_load(LARGEST))["vllm:kv_cache_usage_perc"][0] == pytest.approx(1 / 3, abs=1e-6)


def test_a_request_moves_the_load_at_once_while_the_cached_scrape_stands() -> None:
    metrics = fresh()
    metrics.exposition.render()
    metrics.received(2)
    assert read(render_load(metrics.load))["vllm:num_requests_waiting"] == (2, {})
    metrics.record_step(StepStats(num_running=1, num_blocks_held=16, num_blocks_total=64))
    assert metrics.load == Load(1, 1, 0.25, 0, 64)
    metrics.finished("stop")
    metrics.finished("abort")
    assert (metrics.load.num_waiting, metrics.load.num_running) == (0, 0)


def test_load_and_scrape_agree_and_a_restarted_engine_leaves_one_shape_of_the_cache() -> None:
    metrics = fresh()
    metrics.engine_ready(READY, version="1", enable_prefix_caching=True, startup_s=1.0)
    smaller = {**{name: getattr(READY, name) for name in READY.__struct_fields__}, "num_blocks": 40}
    metrics.engine_ready(type(READY)(**smaller), version="1", enable_prefix_caching=True, startup_s=1.0)
    metrics.received(3)
    metrics.record_step(StepStats(num_running=2, num_blocks_held=10, num_blocks_total=40))
    scrape, load = samples(metrics), read(render_load(metrics.load))
    for name in ("num_requests_waiting", "num_requests_running", "kv_cache_usage_perc"):
        assert scrape[f"vllm:{name}"] == load[f"vllm:{name}"][0]
    shapes = [name for name in scrape if name.startswith("vllm:cache_config_info")]
    assert len(shapes) == 1
    assert load["vllm:cache_config_info"] == (1, {"block_size": "16", "num_gpu_blocks": "40"})
