"""Scaled rotary angles: frequencies are those of transformers, and of llama.cpp's tensor in GGUF files."""

import json
import math
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import MixtralConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from model.checkpoint.checkpoint import read_config
from model.checkpoint.errors import CheckpointError
from model.checkpoint.pack.config import write_config
from model.config import ModelConfig
from model.ops.native.ops import inverse_frequencies
from model.ops.reference.ops import rotary_angles
from tests.support.checkpoints.gguf import GgufShape, all_of, write_gguf
from tests.support.checkpoints.mixtral import Shape

HEAD_DIM = 128
LLAMA_3 = {
    "rope_type": "llama3",
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def _drawn(kind: str) -> dict[str, Any]:
    if kind == "linear":
        return {"rope_type": "linear", "factor": random.uniform(1, 16)}
    low = random.uniform(0.5, 2)
    drawn = {"factor": random.uniform(1, 64), "low_freq_factor": low, "high_freq_factor": low + random.uniform(0.5, 8)}
    return {**LLAMA_3, **drawn, "original_max_position_embeddings": random.choice((128, 4096, 8192))}


def _config(path: Path, scaling: dict[str, Any], theta: float, spelling: str = "rope_scaling") -> ModelConfig:
    config = Shape(head_dim=HEAD_DIM).hf_config.to_dict() | {"architectures": ["MixtralForCausalLM"]}
    del config["rope_parameters"]
    config |= {"rope_theta": theta, spelling: scaling}
    (path / "config.json").write_text(json.dumps(config))
    return read_config(path)[0]


def _frequencies_of_transformers(scaling: dict[str, Any], theta: float) -> torch.Tensor:
    config = MixtralConfig(head_dim=HEAD_DIM, rope_parameters={**scaling, "rope_theta": theta})
    frequencies, attention_factor = ROPE_INIT_FUNCTIONS[scaling["rope_type"]](config, torch.device("cpu"))
    assert attention_factor == 1
    return frequencies


@pytest.mark.parametrize("spelling", ["rope_scaling", "rope_parameters"])
@pytest.mark.parametrize("kind", ["linear", "llama3"])
def test_frequencies_are_those_of_transformers(kind: str, spelling: str, tmp_path: Path) -> None:
    """To a few roundings. Where a pair is scaled in part, transformers subtracts numbers of float32, and the difference
    is added to the inverse of the factor."""
    for scaling in ([LLAMA_3] if kind == "llama3" else []) + [_drawn(kind) for _ in range(50)]:
        theta = random.choice((1e4, 5e5, 1e6))
        config = _config(tmp_path, scaling, theta, spelling)
        exact = _frequencies_of_transformers(scaling, theta)
        low, high = scaling.get("low_freq_factor", 0), scaling.get("high_freq_factor", 1)
        bound = 3e-7 * (1 + scaling["factor"] * high / (high - low) if kind == "llama3" else 1)
        assert ((inverse_frequencies(config) - exact).abs() <= bound * exact).all(), (scaling, theta)
        positions = torch.tensor([0, 1, 77, 1000])
        cos, sin = rotary_angles(positions, HEAD_DIM, theta, config.rope_divisors)
        angles = torch.outer(positions.float(), exact)
        for ours, theirs in ((cos, angles.cos()), (sin, angles.sin())):
            assert (ours[:, 0, : HEAD_DIM // 2] - theirs).abs().max() < 1e-3


def test_unscaled_angles_have_no_divisors(tmp_path: Path) -> None:
    assert _config(tmp_path, {"rope_type": "default"}, 1e4).rope_divisors == ()
    assert _config(tmp_path, {"rope_type": "linear", "factor": 1.0}, 1e4).rope_divisors == ()


def test_a_pack_keeps_the_divisors(tmp_path: Path) -> None:
    config = _config(tmp_path, LLAMA_3, 5e5)
    (tmp_path / "pack").mkdir()
    write_config(tmp_path / "pack", config, "float32")
    assert read_config(tmp_path / "pack")[0].rope_divisors == config.rope_divisors != ()
    assert read_config(tmp_path / "pack", rope_theta=5e5)[0] == read_config(tmp_path / "pack")[0]
    with pytest.raises(CheckpointError, match="give --rope-theta to `smoe pack`"):
        read_config(tmp_path / "pack", rope_theta=1e4)


DEFECTS: list[tuple[str, dict[str, Any]]] = [
    ("rope type is 'yarn'; supported are", {"rope_type": "yarn"}),
    ("rope type is 'dynamic'", {"type": "dynamic", "factor": 2.0}),
    ("factor is missing", {"rope_type": "linear"}),
    ("factor is 0", {"rope_type": "linear", "factor": 0}),
    ("factor is 'x'", {**LLAMA_3, "factor": "x"}),
    ("low_freq_factor is 4.0, not below high_freq_factor 4", {**LLAMA_3, "low_freq_factor": 4.0}),
    ("original_max_position_embeddings is 0", {**LLAMA_3, "original_max_position_embeddings": 0}),
    ("a divisor that is not 1e-06 to 1e\\+06", {"rope_type": "linear", "factor": 1e-30}),
    ("a divisor that is not 1e-06", {**LLAMA_3, "factor": 1e-30}),
    ("not 64 numbers of 1e-06", {"rope_type": "divisors", "divisors": [1e-9] * 64}),
    ("divisors is 'x', not 64 numbers", {"rope_type": "divisors", "divisors": "x"}),
    ("not 64 numbers", {"rope_type": "divisors", "divisors": [1.0] * 63}),
    ("not 64 numbers", {"rope_type": "divisors", "divisors": [-1.0] * 64}),
]


@pytest.mark.parametrize(("pattern", "scaling"), DEFECTS, ids=str)
def test_a_wrong_section_is_refused_by_name(pattern: str, scaling: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=pattern) as caught:
        _config(tmp_path, scaling, 1e4)
    assert "\n" not in str(caught.value)


def test_two_spellings_must_agree(tmp_path: Path) -> None:
    linear = {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}
    _config(tmp_path, linear, 1e4)
    content = json.loads((tmp_path / "config.json").read_text()) | {"rope_parameters": linear}
    (tmp_path / "config.json").write_text(json.dumps(content))
    assert read_config(tmp_path)[0].rope_divisors == (2.0,) * 64
    content["rope_parameters"] = linear | {"factor": 3.0}
    (tmp_path / "config.json").write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match="scale rotary angles differently"):
        read_config(tmp_path)


GGUF = GgufShape(dim=64, num_heads=4, num_kv_heads=2, hidden_dim=96)  # 8 pairs in a head


@pytest.mark.parametrize(
    ("fields", "stored", "divisors"),
    [
        ({}, (), ()),
        ({"rope.scaling.type": "none", "rope.scaling.factor": 4.0}, (), ()),
        ({"rope.scaling.type": "linear", "rope.scaling.factor": 4.0}, (), (4.0,) * 8),
        ({"rope.scaling.factor": 0.0, "rope.scale_linear": 2.0}, (), (2.0,) * 8),
        ({}, (1.0, 1.0, 1.5, 2.0, 8.0, 8.0, 8.0, 8.0), (1.0, 1.0, 1.5, 2.0, 8.0, 8.0, 8.0, 8.0)),
        ({"rope.scaling.factor": 2.0}, (1.0, 4.0) * 4, (2.0, 8.0) * 4),
    ],
)
def test_gguf_files_name_a_factor_or_store_divisors(
    fields: dict[str, Any], stored: tuple[float, ...], divisors: tuple[float, ...], tmp_path: Path
) -> None:
    named = {f"llama.{name}": value for name, value in fields.items()}
    shape = GgufShape(**{**vars(GGUF), "fields": named, "rope_divisors": stored, "tensors_per_part": 9})
    write_gguf(tmp_path / "a.gguf", shape, all_of("F32"))
    first = min(tmp_path.glob("*.gguf"))
    assert read_config(first)[0].rope_divisors == divisors


@pytest.mark.parametrize(("factor", "stored"), [(1e4, (1e3,) * 8), (1e-30, ())], ids=str)
def test_a_factor_times_divisors_beyond_the_bound_is_refused(
    factor: float, stored: tuple[float, ...], tmp_path: Path
) -> None:
    shape = GgufShape(**{**vars(GGUF), "fields": {"llama.rope.scaling.factor": factor}, "rope_divisors": stored})
    write_gguf(tmp_path / "a.gguf", shape, all_of("F32"))
    with pytest.raises(CheckpointError, match=r"times rope_freqs\.weight is not"):
        read_config(tmp_path / "a.gguf")


@pytest.mark.parametrize("stored", [(1.0,) * 7, (0.0,) * 8, (math.nan,) * 8, (1e9,) * 8], ids=str)
def test_wrong_divisors_of_a_gguf_file_are_refused(stored: tuple[float, ...], tmp_path: Path) -> None:
    write_gguf(tmp_path / "a.gguf", GgufShape(**{**vars(GGUF), "rope_divisors": stored}), all_of("F32"))
    with pytest.raises(CheckpointError, match=r"a\.gguf: tensor rope_freqs\.weight "):
        read_config(tmp_path / "a.gguf")
