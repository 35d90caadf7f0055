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

HEAD_DIM, CONTEXT_LEN = 128, Shape().hf_config.max_position_embeddings
LLAMA_3 = {
    "rope_type": "llama3",
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
YARN = {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 128}


def _drawn(kind: str) -> dict[str, Any]:
    if kind == "linear":
        return {"rope_type": "linear", "factor": random.uniform(1, 16)}
    if kind == "yarn":
        return _drawn_yarn()
    low = random.uniform(0.5, 2)
    drawn = {"factor": random.uniform(1, 64), "low_freq_factor": low, "high_freq_factor": low + random.uniform(0.5, 8)}
    return {**LLAMA_3, **drawn, "original_max_position_embeddings": random.choice((128, 4096, 8192))}


def _drawn_yarn() -> dict[str, Any]:
    first_context = random.choice((4, 128, 4096, 8192, 32768))
    drawn: dict[str, Any] = {"rope_type": "yarn", "factor": random.choice((None, 1.0, random.uniform(1, 64)))}
    optional = {
        "attention_factor": random.choice((None, random.uniform(0.5, 2))),
        "beta_fast": random.choice((0, 32, random.uniform(8, 64))),
        "beta_slow": random.choice((None, 1, random.uniform(0.5, 4))),
        "mscale": random.choice((0, 0.707, 1.0)),
        "mscale_all_dim": random.choice((0, 0.707, 1.0)),
        "truncate": random.choice((True, False)),
    }
    drawn |= {name: value for name, value in optional.items() if random.random() < 0.6}
    return {**drawn, "original_max_position_embeddings": first_context}


def _config(path: Path, scaling: dict[str, Any], theta: float, spelling: str = "rope_scaling") -> ModelConfig:
    config = Shape(head_dim=HEAD_DIM).hf_config.to_dict() | {"architectures": ["MixtralForCausalLM"]}
    del config["rope_parameters"]
    config |= {"rope_theta": theta, spelling: scaling, "torch_dtype": "float32"}
    (path / "config.json").write_text(json.dumps(config))
    return read_config(path)[0]


def _of_transformers(scaling: dict[str, Any], theta: float) -> tuple[torch.Tensor, float]:
    rope = {**scaling, "rope_theta": theta}
    config = MixtralConfig(head_dim=HEAD_DIM, rope_parameters=rope, max_position_embeddings=CONTEXT_LEN)
    frequencies, attention_factor = ROPE_INIT_FUNCTIONS[scaling["rope_type"]](config, torch.device("cpu"))
    return frequencies, attention_factor


def _bound(scaling: dict[str, Any]) -> float:
    """Return the error that the roundings of transformers explain: it adds numbers of float32 where a pair is scaled
    in part, and the smaller one has the error of the larger."""
    if scaling["rope_type"] == "linear":
        return 6e-7
    if scaling["rope_type"] == "yarn":  # without truncation the ends of the line are rounded as well
        return (3e-7 if scaling.get("truncate", True) else 3e-6) * (1 + (scaling["factor"] or CONTEXT_LEN / 4))
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    return float(3e-7 * (1 + scaling["factor"] * high / (high - low)))


@pytest.mark.parametrize("inside", [512, None], ids=["both", "outside"])
@pytest.mark.parametrize("outside", [128, None], ids=["outside", "inside"])
def test_llama_3s_first_context_may_stand_outside_the_section_or_nowhere(
    inside: int | None, outside: int | None, tmp_path: Path
) -> None:
    """As for transformers: outside counts first, and without any it is the context."""
    scaling = {**LLAMA_3, "original_max_position_embeddings": inside}
    fields = Shape(head_dim=HEAD_DIM).hf_config.to_dict() | {"architectures": ["MixtralForCausalLM"]}
    del fields["rope_parameters"]
    fields |= {"rope_theta": 5e5, "rope_scaling": {k: v for k, v in scaling.items() if v}, "torch_dtype": "float32"}
    fields |= {"original_max_position_embeddings": outside} if outside else {}
    (tmp_path / "config.json").write_text(json.dumps(fields))
    counted = {**scaling, "original_max_position_embeddings": outside or inside or CONTEXT_LEN}
    exact, _ = _of_transformers(counted, 5e5)
    assert ((inverse_frequencies(read_config(tmp_path)[0]) - exact).abs() <= _bound(counted) * exact).all()


@pytest.mark.parametrize("spelling", ["rope_scaling", "rope_parameters"])
@pytest.mark.parametrize("kind", ["linear", "llama3", "yarn"])
def test_frequencies_are_those_of_transformers(kind: str, spelling: str, tmp_path: Path) -> None:
    for scaling in ([LLAMA_3] if kind == "llama3" else []) + [_drawn(kind) for _ in range(50)]:
        theta = random.choice((1e4, 5e5, 1e6))
        config = _config(tmp_path, scaling, theta, spelling)
        exact, factor = _of_transformers(scaling, theta)
        assert ((inverse_frequencies(config) - exact).abs() <= _bound(scaling) * exact).all(), (scaling, theta)
        assert config.rope_factor == pytest.approx(factor, rel=1e-12), scaling
        positions = torch.tensor([0, 1, 77, 300])
        cos, sin = rotary_angles(positions, HEAD_DIM, theta, config.rope_divisors, config.rope_factor)
        angles = torch.outer(positions.float(), exact)
        for ours, theirs in ((cos, angles.cos() * factor), (sin, angles.sin() * factor)):
            assert (ours[:, 0, : HEAD_DIM // 2] - theirs).abs().max() < 3e-3


def test_unscaled_angles_have_no_divisors(tmp_path: Path) -> None:
    assert _config(tmp_path, {"rope_type": "default"}, 1e4).rope_divisors == ()
    assert _config(tmp_path, {"rope_type": "linear", "factor": 1.0}, 1e4).rope_divisors == ()
    yarn = _config(tmp_path, {**YARN, "factor": 1.0}, 1e4)
    assert (yarn.rope_divisors, yarn.rope_factor) == ((), 1.0)


def test_the_first_context_is_the_config_s_own_if_it_names_one_and_else_the_whole_context(tmp_path: Path) -> None:
    without = {name: value for name, value in YARN.items() if name != "original_max_position_embeddings"}
    config = _config(tmp_path, without, 1e4)
    assert config == _config(tmp_path, {**without, "original_max_position_embeddings": CONTEXT_LEN}, 1e4)
    content = json.loads((tmp_path / "config.json").read_text())
    for spelled in (without, YARN):
        content |= {"rope_scaling": dict(spelled), "original_max_position_embeddings": 64}
        (tmp_path / "config.json").write_text(json.dumps(content))
        assert read_config(tmp_path)[0] != config
        theirs = MixtralConfig(**content | {"head_dim": HEAD_DIM, "rope_parameters": {**spelled, "rope_theta": 1e4}})
        exact, _ = ROPE_INIT_FUNCTIONS["yarn"](theirs, torch.device("cpu"))
        assert torch.allclose(inverse_frequencies(read_config(tmp_path)[0]), exact, rtol=1e-5)


def test_a_context_other_than_the_one_that_angles_are_scaled_for_gives_a_warning(tmp_path: Path) -> None:
    _config(tmp_path, {**YARN, "factor": 16.0}, 1e4)
    [line] = read_config(tmp_path)[1]
    assert "for 2048 tokens (yarn)" in line and line.endswith(f"is {CONTEXT_LEN}")
    _config(tmp_path, {**YARN, "factor": CONTEXT_LEN / 128}, 1e4)
    assert read_config(tmp_path)[1] == []


def test_angles_that_depend_on_the_length_are_read_up_to_the_context(tmp_path: Path) -> None:
    """Up to it transformers does not scale them; test_mixtral.py compares a network."""
    config = _config(tmp_path, {"type": "dynamic", "factor": 2.0}, 1e4)
    assert (config.rope_divisors, config.rope_factor, config.context_len) == ((), 1.0, CONTEXT_LEN)
    [line] = read_config(tmp_path)[1]
    assert f"from token {CONTEXT_LEN + 1} on" in line


@pytest.mark.parametrize("factor", [8.0, 1.0], ids=["divided", "only attention"])
def test_a_pack_keeps_the_attention_factor(factor: float, tmp_path: Path) -> None:
    config = _config(tmp_path, {**YARN, "factor": factor, "attention_factor": 1.3}, 1e4)
    (tmp_path / "pack").mkdir()
    write_config(tmp_path / "pack", config, "float32")
    assert read_config(tmp_path / "pack")[0] == config
    assert config.rope_factor == 1.3


def test_a_pack_keeps_the_divisors(tmp_path: Path) -> None:
    config = _config(tmp_path, LLAMA_3, 5e5)
    (tmp_path / "pack").mkdir()
    write_config(tmp_path / "pack", config, "float32")
    assert read_config(tmp_path / "pack")[0].rope_divisors == config.rope_divisors != ()
    assert read_config(tmp_path / "pack", rope_theta=5e5)[0] == read_config(tmp_path / "pack")[0]
    with pytest.raises(CheckpointError, match="give --rope-theta to `smoe pack`"):
        read_config(tmp_path / "pack", rope_theta=1e4)


DEFECTS: list[tuple[str, dict[str, Any]]] = [
    ("rope type is 'longrope'; supported are", {"rope_type": "longrope"}),
    ("factor is missing", {"rope_type": "yarn"}),
    ("factor is -1", {"rope_type": "yarn", "factor": -1}),
    ("original_max_position_embeddings is 0.5", {**YARN, "original_max_position_embeddings": 0.5}),
    ("beta_fast is -32", {**YARN, "beta_fast": -32}),
    ("beta_slow is 'x'", {**YARN, "beta_slow": "x"}),
    ("mscale is \\[1\\]", {**YARN, "mscale": [1]}),
    ("mscale_all_dim is 10000.0", {**YARN, "mscale_all_dim": 1e4}),
    ("attention_factor is 0,", {**YARN, "attention_factor": 0}),
    ("attention_factor is 1e-05, not 0.001", {**YARN, "attention_factor": 1e-5}),
    ("truncate is 'no'", {**YARN, "truncate": "no"}),
    ("attn_factor is 0.5; only 1", {**YARN, "attn_factor": 0.5}),
    ("extrapolation_factor is 0.5; only 1", {**YARN, "extrapolation_factor": 0.5}),
    ("a divisor that is not 1e-06", {**YARN, "factor": 1e-300}),
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


def test_a_base_of_one_or_less_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="YaRN needs a base of the rotary angles above 1, not 1"):
        _config(tmp_path, YARN, 1.0)
    fields = {"llama.rope.scaling.type": "yarn", "llama.rope.freq_base": 0.5}
    write_gguf(tmp_path / "a.gguf", GgufShape(**{**vars(GGUF), "fields": fields}), all_of("F32"))
    with pytest.raises(CheckpointError, match="YaRN needs a base"):
        read_config(tmp_path / "a.gguf")


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


def _angles_of_llama_cpp(fields: dict[str, Any], num_pairs: int, theta: float) -> tuple[list[float], float]:
    """Return what one position adds to each pair's angle, and the factor of cosines and sines: llama.cpp's steps, of
    llama_context and ggml's rope_yarn(), one after the other. yarn_beta_fast and its like are not read."""
    length = fields.get("original_context_length") or CONTEXT_OF_GGUF
    scale = 1 / (fields.get("factor") or 1.0)
    is_yarn = fields["type"] == "yarn"
    mscale = 1.0
    if is_yarn:
        mscale = (1.0 if scale >= 1 else 0.1 * math.log(1 / scale) + 1) / (1 + 0.1 * math.log(1 / scale))
    mscale *= fields.get("attn_factor", 1.0)
    corners = [2 * num_pairs * math.log(length / (turns * 2 * math.pi)) / (2 * math.log(theta)) for turns in (32, 1)]
    start, end = max(0, math.floor(corners[0])), min(2 * num_pairs - 1, math.ceil(corners[1]))
    angles = []
    for pair in range(num_pairs):
        extrapolated = theta ** (-pair / num_pairs)
        angle = interpolated = scale * extrapolated
        if is_yarn:
            mix = 1 - min(1, max(0, (pair - start) / max(0.001, end - start)))
            angle = interpolated * (1 - mix) + extrapolated * mix
        angles.append(angle)
    return angles, mscale * (1 + 0.1 * math.log(1 / scale)) if is_yarn else mscale


CONTEXT_OF_GGUF = 512


@pytest.mark.parametrize("kind", ["yarn", "linear"])
def test_gguf_files_are_scaled_as_llama_cpp_scales_them(kind: str, tmp_path: Path) -> None:
    for _ in range(30):
        drawn = {"factor": random.uniform(0.5, 64), "original_context_length": random.choice((0, 4, 64, 512, 8192))}
        drawn |= {"attn_factor": random.uniform(0.5, 2)}
        fields = {"type": kind} | {name: value for name, value in drawn.items() if random.random() < 0.7}
        theta = random.choice((1e4, 1e6))
        named = {f"llama.rope.scaling.{name}": value for name, value in fields.items()}
        shape = GgufShape(**{**vars(GGUF), "fields": named | {"llama.rope.freq_base": theta}})
        write_gguf(tmp_path / "a.gguf", shape, all_of("F32"))
        config, warnings = read_config(tmp_path / "a.gguf")
        angles, factor = _angles_of_llama_cpp(fields, 8, theta)
        assert inverse_frequencies(config).tolist() == pytest.approx(angles, rel=1e-6), fields
        assert config.rope_factor == pytest.approx(factor, rel=1e-6), fields
        assert warnings == []


def test_yarn_fields_that_llama_cpp_ignores_give_a_warning(tmp_path: Path) -> None:
    ignored = {"yarn_beta_fast": 16.0, "yarn_log_multiplier": 1.0, "yarn_beta_slow": 1.0}
    named = {f"llama.rope.scaling.{name}": value for name, value in {"type": "yarn", "factor": 4.0, **ignored}.items()}
    plain = {name: value for name, value in named.items() if "yarn_" not in name}
    configs = []
    for fields in (named, plain):
        write_gguf(tmp_path / "a.gguf", GgufShape(**{**vars(GGUF), "fields": fields}), all_of("F32"))
        configs.append(read_config(tmp_path / "a.gguf"))
    assert configs[0][0] == configs[1][0]
    assert [line.split(":")[0] for line in configs[0][1]] == [
        "llama.rope.scaling.yarn_beta_fast is 16.0",
        "llama.rope.scaling.yarn_log_multiplier is 1.0",
    ]
    assert configs[1][1] == []
