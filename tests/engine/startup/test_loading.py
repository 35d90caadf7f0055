"""Loading takes no resources from requests, and rejects a KV cache that does not fit."""

import pytest
import torch

from engine.config import EngineConfig
from engine.engine import Engine
from engine.errors import EngineConfigError
from smoe import LocalEngine, SamplingParams
from tests.support.paths import DEMO


def test_measuring_the_budget_takes_no_row_from_requests() -> None:
    torch.set_num_threads(1)
    engine = LocalEngine(DEMO, max_num_seqs=1, threads=1)
    for _ in range(3):
        [completion] = engine.generate([1, 5, 6], SamplingParams(max_tokens=2, ignore_eos=True))
        assert len(completion.token_ids) == 2


def test_a_kv_cache_larger_than_the_free_memory_is_rejected_at_the_start() -> None:
    with pytest.raises(EngineConfigError, match=r"takes 4\.0 TiB, and .* free after the weights: a smaller --kv-cache"):
        Engine.load(EngineConfig(model=str(DEMO), threads=1, kv_cache_memory_bytes=1 << 42))
