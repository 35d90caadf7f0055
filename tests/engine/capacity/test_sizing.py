"""The engine's limits follow from model, machine and flags."""

from pathlib import Path

import pytest

from engine.capacity.sizing import context_limit, pool_blocks
from engine.config import EngineConfig
from engine.errors import EngineConfigError
from model.checkpoint.config_file import load_config
from model.config import ModelConfig
from tests.support.checkpoints.mixtral import Shape


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
    with pytest.raises(
        EngineConfigError, match=r"--kv-cache-memory-bytes of 1\.5 KiB is too small.* at least 2\.0 KiB"
    ):
        pool_blocks(config(kv_cache_memory_bytes=1500), model, 512, block_bytes=1024, free_bytes=0)


def test_a_derived_context_is_lowered_to_what_fits_and_a_set_one_is_refused_with_the_number(model: ModelConfig) -> None:
    limit, [warning] = context_limit(config(), model, num_blocks=10, budget=512)
    assert limit == 160 and "160" in warning
    assert context_limit(config(max_model_len=160), model, 10, 512) == (160, ())
    with pytest.raises(EngineConfigError, match="--max-model-len 160 fits"):
        context_limit(config(max_model_len=161), model, 10, 512)


def test_a_length_beyond_the_context_is_refused_with_one_that_fits_the_cache_too(model: ModelConfig) -> None:
    with pytest.raises(EngineConfigError, match="--max-model-len 160 fits"):
        context_limit(config(max_model_len=5000), model, num_blocks=10, budget=512)
    with pytest.raises(EngineConfigError, match="--max-model-len 1 holds no request"):
        context_limit(config(max_model_len=1), model, num_blocks=10, budget=512)


def test_free_memory_without_room_for_a_block_names_what_is_needed(model: ModelConfig) -> None:
    with pytest.raises(EngineConfigError, match=r"3\.0 KiB are left after the weights, and 4\.0 KiB are needed"):
        pool_blocks(config(), model, 512, block_bytes=1024, free_bytes=3072)
    assert pool_blocks(config(), model, 512, block_bytes=1024, free_bytes=4096) == 1
