"""Limits follow from model, machine and flags, and a cgroup's limit is obeyed."""

from pathlib import Path

import pytest

from engine.capacity.host_resources import cgroup_headroom_bytes
from engine.capacity.sizing import context_limit, pool_blocks
from engine.config import EngineConfig
from engine.errors import EngineConfigError
from model.checkpoint.config_file import load_config
from model.config import ModelConfig
from tests.support.checkpoints import Shape


@pytest.fixture
def model(tmp_path: Path) -> ModelConfig:
    Shape().hf_config.save_pretrained(tmp_path)
    config = tmp_path / "config.json"
    config.write_text(
        config.read_text().replace('"model_type"', '"architectures": ["MixtralForCausalLM"], "model_type"')
    )
    return load_config(tmp_path)[0]


def config(**settings: object) -> EngineConfig:
    return EngineConfig(model="m", **settings)  # type: ignore[arg-type]


def test_the_pool_takes_half_of_the_free_memory_but_never_more_than_all_requests_could_use(model: ModelConfig) -> None:
    assert pool_blocks(config(), model, 512, block_bytes=1000, free_bytes=2_000_000) == 999  # and the null block
    assert pool_blocks(config(max_num_seqs=2), model, 512, block_bytes=1, free_bytes=10**12) == 2 * 1024 // 16


def test_a_memory_flag_counts_the_null_block(model: ModelConfig) -> None:
    assert pool_blocks(config(kv_cache_memory_bytes=5000), model, 512, block_bytes=1000, free_bytes=0) == 4
    with pytest.raises(EngineConfigError, match=r"at least 2\.0 KiB"):
        pool_blocks(config(kv_cache_memory_bytes=1500), model, 512, block_bytes=1024, free_bytes=0)


def test_a_derived_context_is_lowered_to_what_fits_and_a_set_one_is_refused_with_the_number(model: ModelConfig) -> None:
    limit, [warning] = context_limit(config(), model, num_blocks=10, budget=512)
    assert limit == 160 and "160" in warning
    assert context_limit(config(max_model_len=160), model, 10, 512) == (160, ())
    with pytest.raises(EngineConfigError, match="--max-model-len 160 fits"):
        context_limit(config(max_model_len=161), model, 10, 512)


@pytest.mark.parametrize(("limit", "expected"), [("1000", 700), ("200", 0), ("max", 2**62)])
def test_a_cgroup_limits_what_is_available(tmp_path: Path, limit: str, expected: int) -> None:
    (tmp_path / "memory.max").write_text(limit + "\n")
    (tmp_path / "memory.current").write_text("300\n")
    assert cgroup_headroom_bytes(tmp_path, tmp_path / "none") == expected


@pytest.mark.parametrize(
    ("limit_file", "usage_file", "prefix"),
    [("memory.max", "memory.current", ""), ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_")],
)
def test_the_page_cache_of_a_cgroup_counts_as_available(
    tmp_path: Path, limit_file: str, usage_file: str, prefix: str
) -> None:
    (tmp_path / limit_file).write_text("1000\n")
    (tmp_path / usage_file).write_text("900\n")
    (tmp_path / "memory.stat").write_text(f"anon 200\n{prefix}inactive_file 500\n{prefix}active_file 150\nshmem 50\n")
    assert cgroup_headroom_bytes(tmp_path, tmp_path) == 1000 - 250
