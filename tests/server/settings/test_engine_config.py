"""The engine gets the settings of the same name."""

from pathlib import Path

import pytest

from engine.config import EngineConfig
from server.settings.engine_config import engine_config
from server.settings.settings import Settings
from server.settings.sources import load_settings

pytestmark = pytest.mark.usefixtures("clean_environment")


def test_the_engine_gets_what_it_was_given(tmp_path: Path) -> None:
    settings = load_settings(
        {
            "device": "cpu", "backend": "native", "isa": "avx2", "dtype": "float32", "threads": "2",
            "max_model_len": "100", "max_num_seqs": "5", "max_num_batched_tokens": "64", "block_size": "8",
            "num_kv_blocks": "40", "no_enable_prefix_caching": True, "scheduling_policy": "fcfs",
            "sliding_window": "32", "share_prefix_cache": True,
        }
    )  # fmt: skip
    config = engine_config(settings, tmp_path)
    assert config.model == str(tmp_path)
    for name in (
        "device", "backend", "isa", "dtype", "threads", "max_model_len", "max_num_seqs", "max_num_batched_tokens",
        "block_size", "num_kv_blocks", "kv_cache_memory_bytes", "scheduling_policy", "sliding_window",
        "share_prefix_cache",
    ):  # fmt: skip
        assert getattr(config, name) == getattr(settings, name)
    assert config.enable_prefix_caching is False
    assert config.sliding_window == 32


def test_the_defaults_are_the_engines_own(tmp_path: Path) -> None:
    assert engine_config(Settings(), tmp_path) == EngineConfig(model=str(tmp_path))
