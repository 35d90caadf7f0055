"""Weights of quantized checkpoints equal the definition of their formats; wrong parts are refused by name."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from model.checkpoint.checkpoint import read_config, read_stored_weights
from model.checkpoint.config_file import read_encoding
from model.checkpoint.errors import CheckpointError
from model.checkpoint.quantized.decoders import FP8_VALUES
from model.stored_weights import read_weight
from tests.support.checkpoints.mixtral import Shape, edit_config, edit_tensors, random_model, save_in_layout
from tests.support.checkpoints.quantized import FORMATS, save_quantized

SHAPE = Shape(dim=64, num_heads=2, num_kv_heads=1, num_layers=1, hidden_dim=64, num_experts=2, vocab_size=96)
BASE = "model.layers.0.self_attn.q_proj."


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_in_layout(random_model(SHAPE), tmp_path_factory.mktemp("plain"))


def _read(path: Path) -> dict[str, Tensor]:
    stored = read_stored_weights(path, read_config(path)[0])
    return {name: read_weight(weight, torch.float32).float() for name, weight in stored.items()}


@pytest.mark.parametrize("name", FORMATS)
def test_weights_are_those_of_the_formats_definition(name: str, plain: Path, tmp_path: Path) -> None:
    expected = save_quantized(plain, tmp_path / "quantized", name)
    found = _read(tmp_path / "quantized")
    assert set(found) == set(expected)
    assert [each for each, weight in expected.items() if not torch.equal(found[each], weight.float())] == []


def test_fp8_values_are_those_of_torch() -> None:
    expected = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).float()
    assert torch.equal(torch.from_numpy(FP8_VALUES).nan_to_num(7777), expected.nan_to_num(7777))


CACHE_SCALES = ["kv_scale", "k_scale", "v_scale", "prob_output_scale", "k_proj.k_scale", "v_proj.v_scale"]


@pytest.mark.parametrize("name", [*CACHE_SCALES, "k_proj.output_scale"])
def test_scales_of_a_cache_in_fp8_are_passed_over(name: str, plain: Path, tmp_path: Path) -> None:
    """vLLM, TGI and ModelOpt have their own names for them."""
    expected = save_quantized(plain, tmp_path / "a", "FP8")
    scale = {f"model.layers.0.self_attn.{name}": torch.ones(1)}
    edit_tensors(tmp_path / "a", lambda tensors: tensors.update(scale))
    found = _read(tmp_path / "a")
    assert all(torch.equal(found[each], weight.float()) for each, weight in expected.items())


def test_a_gate_with_a_part_of_gptq_or_a_quantized_gate_is_read(plain: Path, tmp_path: Path) -> None:
    """Some GPTQ files have one of the two."""
    expected = save_quantized(plain, tmp_path / "a", "GPTQ")
    gate = "model.layers.0.block_sparse_moe.gate."
    edit_tensors(tmp_path / "a", lambda tensors: tensors.update({gate + "g_idx": torch.zeros(64, dtype=torch.int32)}))
    assert torch.equal(_read(tmp_path / "a")[gate + "weight"], expected[gate + "weight"].float())


OLD_FILES = {
    "GPTQ": ("quantize_config.json", {"bits": 4, "group_size": 32, "desc_act": False, "sym": False}),
    "GPTQ act-order": ("quantize_config.json", {"bits": 4, "group_size": 32, "desc_act": True, "sym": False}),
    "AWQ": ("quant_config.json", {"w_bit": 4, "q_group_size": 32, "zero_point": True, "version": "GEMM"}),
}


@pytest.mark.parametrize("name", OLD_FILES)
def test_files_of_2023_that_name_the_format_in_a_file_of_its_own_are_read(
    name: str, plain: Path, tmp_path: Path
) -> None:
    expected, (file, values) = save_quantized(plain, tmp_path / "a", name), OLD_FILES[name]
    edit_config(tmp_path / "a", quantization_config=...)
    (tmp_path / "a" / file).write_text(json.dumps(values))
    found = _read(tmp_path / "a")
    assert [each for each, weight in expected.items() if not torch.equal(found[each], weight.float())] == []
    (tmp_path / "a" / file).write_text(json.dumps(values | {"bits": 3, "w_bit": 3}))
    with pytest.raises(CheckpointError, match=rf"{file}: bits is 3; supported: [48, ]+; use"):
        read_config(tmp_path / "a")
    (tmp_path / "a" / file).write_text('{"calibration": "of another program"}')
    assert read_encoding(tmp_path / "a") is None


@pytest.mark.parametrize("name", FORMATS)
def test_quantized_tensors_without_a_format_are_named_as_such(name: str, plain: Path, tmp_path: Path) -> None:
    save_quantized(plain, tmp_path / "a", name)
    edit_config(tmp_path / "a", quantization_config=..., quantization=...)
    with pytest.raises(CheckpointError, match=r"config\.json does not name its format: quantization_config is missing"):
        _read(tmp_path / "a")


def test_the_keys_of_a_file_of_2023_say_which_of_two_formats_it_is(plain: Path, tmp_path: Path) -> None:
    expected = save_quantized(plain, tmp_path / "a", "AWQ")
    edit_config(tmp_path / "a", quantization_config=...)
    (tmp_path / "a" / "quantize_config.json").write_text(json.dumps(OLD_FILES["AWQ"][1]))
    found = _read(tmp_path / "a")
    assert [each for each, weight in expected.items() if not torch.equal(found[each], weight.float())] == []


@pytest.mark.parametrize("text", ['{"bits": 3, "group_size": 32}', " " * (1 << 20) + "{}"], ids=["3 bits", "large"])
def test_a_file_of_2023_beside_weights_that_are_not_quantized_is_ignored(
    text: str, plain: Path, tmp_path: Path
) -> None:
    for file in plain.iterdir():
        (tmp_path / file.name).symlink_to(file)
    (tmp_path / "quantize_config.json").write_text(text)
    assert read_encoding(tmp_path) is None
    assert set(_read(tmp_path)) == set(_read(plain))
    (tmp_path / "model.safetensors").unlink()  # a pack has copies of such files, and its weights elsewhere
    assert read_config(tmp_path) == read_config(plain)


def _change(part: str, change: Callable[[Tensor], Tensor]) -> Callable[[dict[str, Tensor]], object]:
    return lambda tensors: tensors.update({BASE + part: change(tensors[BASE + part]).contiguous()})


def _with_offset(state: Tensor, offset: str) -> Tensor:
    """Return the state of bitsandbytes, which is JSON, with this nested_offset."""
    text = json.dumps(json.loads(bytes(state.tolist())) | {"nested_offset": 0}).replace(
        '"nested_offset": 0', f'"nested_offset": {offset}'
    )
    return torch.tensor(list(text.encode()), dtype=torch.uint8)


DEFECTS: dict[str, tuple[str, Callable[[dict[str, Tensor]], object], str]] = {
    "no scales": ("AWQ", lambda t: t.pop(BASE + "scales"), r"q_proj\.scales is missing"),
    "nothing": (
        "AWQ",
        lambda t: [t.pop(BASE + p) for p in ("scales", "qweight", "qzeros")],
        "and so are its quantized",
    ),
    "another part": ("AWQ", lambda t: t.update({BASE + "x": torch.ones(1)}), r"q_proj\.x' does not belong to awq"),
    "another tensor": ("AWQ", lambda t: t.update({"x.y": torch.ones(1)}), "'x.y' does not belong to this model"),
    "fewer words": ("AWQ", _change("qweight", lambda t: t[:, :-1]), r"q_proj\.qweight has shape \[64, 7\]"),
    "float codes": ("AWQ", _change("qweight", lambda t: t.float()), "has dtype F32; supported are I32"),
    "a bias": ("GPTQ", _change("bias", lambda t: t + 1), "biases are not supported"),
    "a group too high": ("GPTQ", _change("g_idx", lambda t: t + 1), "names a group that is not one of 2"),
    "bytes for words": (
        "compressed-tensors, zeros",
        _change("weight_zero_point", lambda t: t.to(torch.int8)),
        r"weight_zero_point has shape \[8, 2\], but",
    ),
    "no zeros": (
        "compressed-tensors INT8, zeros",
        lambda t: t.pop(BASE + "weight_zero_point"),
        "zero_point is missing",
    ),
    "no zeros in AWQ": ("AWQ", lambda t: t.pop(BASE + "qzeros"), r"q_proj\.qzeros is missing"),
    "half a code": (
        "MLX 3-bit",
        lambda t: t.update({"lm_head.weight": t["lm_head.weight"][:, 1:].contiguous()}),
        "requires",
    ),
    "another shape": ("compressed-tensors", _change("weight_shape", lambda t: t + 1), "weight_shape is"),
    "no state": (
        "nf4",
        lambda t: t.pop(BASE + "weight.quant_state.bitsandbytes__nf4"),
        "has no quant_state of bitsandbytes",
    ),
    "a damaged state": (
        "nf4",
        _change("weight.quant_state.bitsandbytes__nf4", lambda t: t[:-3]),
        "not valid JSON",
    ),
    "an offset of 400 digits": (
        "nf4",
        _change("weight.quant_state.bitsandbytes__nf4", lambda t: _with_offset(t, "1" * 400)),
        "has no valid nested_offset",
    ),
    "an infinite offset": (
        "nf4",
        _change("weight.quant_state.bitsandbytes__nf4", lambda t: _with_offset(t, "1e999")),
        "has no valid nested_offset",
    ),
    "two scales": (
        "FP8",
        lambda t: t.update({BASE + "weight_scale_inv": t[BASE + "weight_scale"].clone()}),
        r"q_proj\.weight_scale_inv and .*q_proj\.weight_scale are the same part",
    ),
    "two scales of blocks": (
        "FP8 in blocks",
        lambda t: t.update({BASE + "weight_scale": t[BASE + "weight_scale_inv"].clone()}),
        r"q_proj\.weight_scale and .*q_proj\.weight_scale_inv are the same part",
    ),
    "MLX experts": (
        "MLX",
        lambda t: t.update({k: v[:1].contiguous() for k, v in t.items() if "switch_mlp" in k}),
        "has not 2 matrices",
    ),
}


@pytest.mark.parametrize("name", DEFECTS)
def test_wrong_parts_are_refused_in_one_line(name: str, plain: Path, tmp_path: Path) -> None:
    layout, change, pattern = DEFECTS[name]
    path = tmp_path / "quantized"
    save_quantized(plain, path, layout)
    tensors = load_file(path / "model.safetensors")
    change(tensors)
    save_file(tensors, path / "model.safetensors")
    with pytest.raises(CheckpointError, match=pattern) as caught:
        _read(path)
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)


ROUND: dict[str, Any] = {"quant_method": "auto-round", "bits": 4, "group_size": 128}
GPTQ: dict[str, Any] = {"quant_method": "gptq", "bits": 4, "group_size": 128}
CT: dict[str, Any] = {"quant_method": "compressed-tensors", "format": "pack-quantized"}
EIGHT: dict[str, Any] = {"num_bits": 8, "strategy": "group", "group_size": 32, "symmetric": True}
WEIGHTS: dict[str, Any] = {"num_bits": 4, "strategy": "group", "group_size": 32, "symmetric": True}
BLOCKS: dict[str, Any] = {"num_bits": 8, "type": "float", "strategy": "block", "block_structure": [32, 32]}
REFUSED: dict[str, dict[str, Any]] = {
    "exl2 checkpoints are not supported; use": {"quant_method": "exl2"},
    "hqq checkpoints are not supported; use": {"quant_method": "hqq"},
    "marlin checkpoints are not supported; use": {"quant_method": "marlin"},
    "quantization_config.quant_method is 'new'; supported are awq, gptq, ": {"quant_method": "new"},
    "quantization_config.quant_method is None": {},
    "version is 'gemv', which is not supported; use a file of version gemm": {
        "quant_method": "awq", "version": "gemv", "bits": 4, "group_size": 128,
    },
    "version is 'marlin'": {"quant_method": "awq", "version": "marlin"},
    "bits is 3; supported: 4, 8; use": GPTQ | {"bits": 3},
    "bits is '4'; supported: 4, 8; use": GPTQ | {"bits": "4"},
    "is_marlin_format is True": GPTQ | {"is_marlin_format": True},
    "checkpoint_format is 'marlin'": GPTQ | {"checkpoint_format": "marlin"},
    "group_size is 0": GPTQ | {"group_size": 0},
    "group_size is None, not a number of inputs, or -1": {"quant_method": "gptq", "bits": 4},
    "format is 'marlin-24'": CT | {"format": "marlin-24"},
    "has not one kind of weights": CT,
    "has not one kind": CT | {"config_groups": {"a": {"weights": WEIGHTS}, "b": {"weights": EIGHT}}},
    "weights.type is 'float'": CT | {"config_groups": {"a": {"weights": WEIGHTS | {"type": "float"}}}},
    "block_structure is None": CT | {
        "format": "float-quantized", "config_groups": {"a": {"weights": BLOCKS | {"block_structure": None}}}
    },
    "weights.num_bits is 4": CT | {
        "format": "float-quantized", "config_groups": {"a": {"weights": BLOCKS | {"num_bits": 4}}}
    },
    "weights.type is 'int'": CT | {
        "format": "float-quantized", "config_groups": {"a": {"weights": BLOCKS | {"type": "int"}}}
    },
    "strategy is 'block'": CT | {"config_groups": {"a": {"weights": WEIGHTS | {"strategy": "block"}}}},
    "num_bits is 2": CT | {"config_groups": {"a": {"weights": WEIGHTS | {"num_bits": 2}}}},
    "packing_format is 'other'": ROUND | {"packing_format": "other"},
    "only 4 bits are supported": {"quant_method": "bitsandbytes", "load_in_8bit": True},
    "weight_block_size is 128": {"quant_method": "fp8", "weight_block_size": 128},
}  # fmt: skip


@pytest.mark.parametrize("pattern", REFUSED)
def test_other_formats_are_refused_by_name_with_a_way_out(pattern: str, plain: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text((plain / "config.json").read_text())
    edit_config(tmp_path, quantization_config=REFUSED[pattern])
    with pytest.raises(CheckpointError, match=pattern) as caught:
        read_config(tmp_path)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400
