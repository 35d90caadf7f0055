"""Loading rejects a KV cache that does not fit."""

import pytest

from engine.config import EngineConfig
from engine.engine import Engine
from engine.errors import EngineConfigError
from tests.support.paths import DEMO


def test_a_kv_cache_larger_than_the_free_memory_is_rejected_at_the_start() -> None:
    with pytest.raises(EngineConfigError, match=r"takes 4\.0 TiB, and .* free after the weights: a smaller --kv-cache"):
        Engine.load(EngineConfig(model=str(DEMO), threads=1, kv_cache_memory_bytes=1 << 42))
