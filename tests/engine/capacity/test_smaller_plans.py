"""engine/capacity/smaller_plans.py: what a start that is refused for memory names as a way out."""

from pathlib import Path

import pytest

from engine.capacity.smaller_plans import ways_out
from engine.config import EngineConfig
from tests.support.checkpoints.header_only import MIXTRAL_8X7B, save_headers

GIB = 1 << 30


@pytest.fixture(scope="module")
def mixtral(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_headers(tmp_path_factory.mktemp("smaller") / "mixtral", MIXTRAL_8X7B)


def test_the_largest_weights_that_fit_are_named(mixtral: Path) -> None:
    config = EngineConfig(model=str(mixtral), device="cpu")
    assert ways_out(config, 80 * GIB) == "; --dtype bfloat16 --quantization int8 fits"
    assert ways_out(config, 30 * GIB) == "; --dtype bfloat16 --quantization int4 fits"


def test_where_none_fit_a_pack_does_unless_the_device_or_the_kv_cache_excludes_it(mixtral: Path) -> None:
    pack = f"smoe pack {mixtral} --dtype bfloat16 --quantization int4 -o DIR"
    plan = "; `smoe plan` says how much is enough"
    here = EngineConfig(model=str(mixtral), device="cpu")
    assert ways_out(here, 20 * GIB) == f"{plan}, and a pack is served from the disk, slowly: {pack}"
    too_large = EngineConfig(model=str(mixtral), device="cpu", kv_cache_memory_bytes=4 * GIB)
    assert ways_out(too_large, 20 * GIB) == plan, "an eighth of the memory is for the KV cache"
    with_theta = EngineConfig(model=str(mixtral), device="cpu", rope_theta=5e5)
    assert ways_out(with_theta, 20 * GIB).endswith(" --quantization int4 --rope-theta 500000 -o DIR")
    for excluded in (
        EngineConfig(model=str(mixtral), quantization="fp8"),
        EngineConfig(model=str(mixtral), device="cuda"),
        EngineConfig(model=str(mixtral), device="cpu", backend="reference"),
    ):
        assert ways_out(excluded, 20 * GIB) == plan
