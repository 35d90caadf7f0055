"""Checkpoints in the formats of AWQ, GPTQ and others: packers that place one code at a time, from random codes.

Each packer returns the parts of a matrix and the weights that they stand for. Weights are computed as the formats'
publishers define them, in a way of their own: with Python's integers, code by code, or by torch.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor

from tests.support.checkpoints.mixtral import edit_config

Parts = dict[str, Tensor]
Packer = Callable[[np.random.Generator, int, int], tuple[Parts, Tensor]]
AWQ_PLACES = [0, 2, 4, 6, 1, 3, 5, 7]  # output of each 4 bits of a word


@dataclass(frozen=True)
class Format:
    """A format: its entry in config.json, and how a matrix of random codes is packed."""

    config: dict[str, Any]
    pack: Packer
    key: str = "quantization_config"
    tensors: dict[str, str] = field(default_factory=dict)


def words(codes: NDArray[Any], bits: int, axis: int, order: list[int] | None = None) -> Tensor:
    """Pack codes along an axis into int32 words, the first code in the lowest bits; or in another order."""
    count = 32 // bits
    moved = np.moveaxis(codes, axis, -1).astype(object)
    order = order or list(range(count))
    packed = sum(moved[..., place::count] << (bits * i) for i, place in enumerate(order))
    signed = np.vectorize(lambda word: word - (1 << 32) if word >= 1 << 31 else word, otypes=[np.int64])(packed)
    return torch.from_numpy(np.moveaxis(signed, -1, axis).astype(np.int32).copy())


def _codes(rng: np.random.Generator, outputs: int, inputs: int, bits: int) -> NDArray[np.int64]:
    return rng.integers(0, 1 << bits, (outputs, inputs))


def _scales(rng: np.random.Generator, outputs: int, groups: int, bits: int, inputs: int) -> Tensor:
    size = inputs**-0.5 / (1 << (bits - 1))
    return torch.from_numpy(rng.uniform(0.5, 1.5, (outputs, groups)) * size).half()


def _weights(codes: NDArray[Any], zeros: NDArray[Any], scales: Tensor, groups: NDArray[Any]) -> Tensor:
    """Return scale * (code - zero) for each input's group: [O, D] float32."""
    differences = torch.from_numpy((codes - zeros[:, groups]).astype(np.float32))
    return differences * scales.float()[:, torch.from_numpy(groups)]


def awq(group: int = 32, *, has_zeros: bool = True) -> Packer:
    def pack(rng: np.random.Generator, outputs: int, inputs: int) -> tuple[Parts, Tensor]:
        codes, zeros = _codes(rng, outputs, inputs, 4), _codes(rng, outputs, inputs // group, 4)
        scales = _scales(rng, outputs, inputs // group, 4, inputs)
        parts = {"qweight": words(codes.T, 4, 1, AWQ_PLACES), "scales": scales.T.contiguous()}
        if has_zeros:
            parts["qzeros"] = words(zeros.T, 4, 1, AWQ_PLACES)
        else:
            zeros[:] = 8
        return parts, _weights(codes, zeros, scales, np.arange(inputs) // group)

    return pack


def gptq(bits: int, *, group: int = 32, act_order: bool = False, offset: int = 1, is_symmetric: bool = False) -> Packer:
    def pack(rng: np.random.Generator, outputs: int, inputs: int) -> tuple[Parts, Tensor]:
        codes, count = _codes(rng, outputs, inputs, bits), inputs // group
        zeros = rng.integers(offset, (1 << bits) + offset, (outputs, count))
        if is_symmetric:
            zeros[:] = 1 << (bits - 1)
        scales, groups = _scales(rng, outputs, count, bits, inputs), np.arange(inputs) // group
        if act_order:
            groups = rng.permutation(groups)
        parts = {
            "qweight": words(codes.T, bits, 0),
            "qzeros": words((zeros - offset).T, bits, 1),
            "scales": scales.T.contiguous(),
            "g_idx": torch.from_numpy(groups.astype(np.int32)),
            "bias": torch.zeros(outputs).half(),
        }
        return parts, _weights(codes, zeros, scales, groups)

    return pack


def compressed(
    bits: int, *, has_zeros: bool, act_order: bool = False, group: int = 32, packs_zeros: bool = True
) -> Packer:
    def pack(rng: np.random.Generator, outputs: int, inputs: int) -> tuple[Parts, Tensor]:
        codes, count = _codes(rng, outputs, inputs, bits), inputs // group
        zeros = _codes(rng, outputs, count, bits) if has_zeros else np.full((outputs, count), 1 << (bits - 1))
        scales, groups = _scales(rng, outputs, count, bits, inputs).bfloat16(), np.arange(inputs) // group
        parts = {
            "weight_packed": words(codes, bits, 1),
            "weight_scale": scales,
            "weight_shape": torch.tensor([outputs, inputs]),
        }
        if act_order:
            groups = rng.permutation(groups)
            parts["weight_g_idx"] = torch.from_numpy(groups.astype(np.int32))
        if has_zeros:
            signed = torch.from_numpy((zeros - (1 << (bits - 1))).astype(np.int8))
            parts["weight_zero_point"] = words(zeros, bits, 0) if packs_zeros else signed
        return parts, _weights(codes, zeros, scales, groups)

    return pack


def fp8(scale_shape: Callable[[int], tuple[int, ...]], scale_name: str = "weight_scale") -> Packer:
    def pack(rng: np.random.Generator, outputs: int, inputs: int) -> tuple[Parts, Tensor]:
        weight = torch.from_numpy(rng.standard_normal((outputs, inputs))).to(torch.float8_e4m3fn)
        scale = torch.tensor(rng.uniform(0.5, 1.5, scale_shape(outputs)) * inputs**-0.5).float()
        parts = {"weight": weight, scale_name: scale, "input_scale": torch.ones(())}
        return parts, weight.float() * scale.reshape(-1, 1)

    return pack


def fp8_blocks(scale_name: str) -> Packer:
    def pack(rng: np.random.Generator, outputs: int, inputs: int) -> tuple[Parts, Tensor]:
        weight = torch.from_numpy(rng.standard_normal((outputs, inputs))).to(torch.float8_e4m3fn)
        scale = torch.from_numpy(rng.uniform(0.5, 1.5, (-(-outputs // 48), -(-inputs // 40))) * inputs**-0.5).float()
        spread = scale.repeat_interleave(48, 0)[:outputs].repeat_interleave(40, 1)[:, :inputs]
        return {"weight": weight, scale_name: scale}, weight.float() * spread

    return pack


def int8(*, has_zeros: bool) -> Packer:
    def pack(rng: np.random.Generator, outputs: int, inputs: int) -> tuple[Parts, Tensor]:
        weight = torch.from_numpy(rng.integers(-128, 128, (outputs, inputs), np.int8))
        scale = _scales(rng, outputs, 1, 8, inputs).bfloat16()
        parts = {"weight": weight, "weight_scale": scale}
        if not has_zeros:
            return parts, weight.float() * scale.float()
        zeros = torch.from_numpy(rng.integers(-128, 128, (outputs, 1), np.int8))
        return parts | {"weight_zero_point": zeros}, (weight.float() - zeros.float()) * scale.float()

    return pack


NF4 = [-1.0, -0.6961928, -0.5250731, -0.3949175, -0.2844414, -0.1847734, -0.0910500, 0.0, 0.0795803, 0.1609302]
NF4 += [0.2461123, 0.3379152, 0.4407098, 0.5626170, 0.7229568, 1.0]


def bitsandbytes(is_nested: bool) -> Packer:
    def pack(rng: np.random.Generator, outputs: int, inputs: int) -> tuple[Parts, Tensor]:
        codes = _codes(rng, outputs, inputs, 4).reshape(-1)
        count, values = len(codes) // 64, torch.tensor(NF4)
        state: dict[str, Any] = {"quant_type": "nf4", "blocksize": 64, "shape": [outputs, inputs], "dtype": "bfloat16"}
        scales = torch.from_numpy(rng.uniform(0.5, 1.5, count) * inputs**-0.5).float()
        parts = {
            "weight": torch.tensor([[int(a) << 4 | int(b)] for a, b in codes.reshape(-1, 2)], dtype=torch.uint8),
            "weight.absmax": scales,
            "weight.quant_map": values,
        }
        if is_nested:
            fine, coarse = torch.from_numpy(rng.integers(0, 256, count)), torch.rand(-(-count // 256)) + 0.5
            table, offset = torch.linspace(0, inputs**-0.5, 256), 0.0625
            state |= {"nested_blocksize": 256, "nested_offset": offset, "nested_dtype": "float32"}
            parts |= {"weight.absmax": fine.to(torch.uint8)}
            parts |= {"weight.nested_absmax": coarse, "weight.nested_quant_map": table}
            scales = torch.stack([table[int(q)] * coarse[i // 256] + offset for i, q in enumerate(fine)])
        text = json.dumps(state).encode()
        parts["weight.quant_state.bitsandbytes__nf4"] = torch.tensor(list(text), dtype=torch.uint8)
        weight = values[torch.from_numpy(codes)].view(-1, 64) * scales[:, None]
        return parts, weight.view(outputs, inputs)

    return pack


def stream_words(codes: NDArray[Any], bits: int) -> Tensor:
    """Pack each row's codes into one number, the first code in the lowest bits, and cut it into uint32 words."""
    streams = [sum(int(code) << (bits * place) for place, code in enumerate(row)) for row in codes]
    count = codes.shape[1] * bits // 32
    return torch.tensor([[stream >> (32 * i) & 0xFFFFFFFF for i in range(count)] for stream in streams]).to(
        torch.uint32
    )


def mlx(bits: int, group: int = 32) -> Packer:
    def pack(rng: np.random.Generator, outputs: int, inputs: int) -> tuple[Parts, Tensor]:
        codes, groups = _codes(rng, outputs, inputs, bits), np.arange(inputs) // group
        scales = _scales(rng, outputs, inputs // group, bits, inputs)
        biases = (-scales.float() * (1 << (bits - 1))).half()
        weight = torch.from_numpy(codes.astype(np.float32)) * scales.float()[:, groups] + biases.float()[:, groups]
        return {"weight": stream_words(codes, bits), "scales": scales, "biases": biases}, weight

    return pack


def mixed_mlx(rng: np.random.Generator, outputs: int, inputs: int) -> tuple[Parts, Tensor]:
    """Give tall and square matrices 3 bits in groups of 64 and others 6 bits in groups of 32."""
    return (mlx(3, 64) if outputs >= inputs else mlx(6))(rng, outputs, inputs)


def _groups(**weights: Any) -> dict[str, Any]:
    return {"group_0": {"targets": ["Linear"], "weights": weights}}


def _packed(bits: int, symmetric: bool, **more: Any) -> dict[str, Any]:
    weights = {"num_bits": bits, "type": "int", "symmetric": symmetric, "strategy": "group", "group_size": 32} | more
    return {"quant_method": "compressed-tensors", "format": "pack-quantized", "config_groups": _groups(**weights)}


def _scaled(layout: str, kind: str, strategy: str, **more: Any) -> dict[str, Any]:
    weights = {"num_bits": 8, "type": kind, "symmetric": True, "strategy": strategy} | more
    return {"quant_method": "compressed-tensors", "format": layout, "config_groups": _groups(**weights)}


AWQ = {"quant_method": "awq", "bits": 4, "group_size": 32, "version": "gemm", "zero_point": True}
GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 32, "desc_act": False, "sym": False}
ROUND = {"quant_method": "auto-round", "bits": 4, "group_size": 32, "sym": True}
BNB = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
FORMATS = {
    "AWQ": Format(AWQ, awq()),
    "AWQ, groups of 64": Format(AWQ | {"group_size": 64}, awq(64)),
    "AWQ, one group": Format(AWQ | {"group_size": -1}, awq(64)),
    "AWQ, no zeros": Format(AWQ | {"zero_point": False}, awq(has_zeros=False)),
    "AWQ, zeros that the config denies": Format(AWQ | {"zero_point": False}, awq()),
    "AWQ of GPTQModel": Format(AWQ | {"version": ..., "format": "gemm"}, awq()),
    "GPTQ": Format(GPTQ, gptq(4)),
    "GPTQ 8-bit": Format(GPTQ | {"bits": 8}, gptq(8)),
    "GPTQ act-order": Format(GPTQ | {"desc_act": True}, gptq(4, act_order=True)),
    "GPTQ v2": Format(GPTQ | {"checkpoint_format": "gptq_v2"}, gptq(4, offset=0)),
    "GPTQ act-order, one group": Format(GPTQ | {"group_size": -1, "desc_act": True}, gptq(4, group=64, act_order=True)),
    "GPTQ, symmetric": Format(GPTQ | {"sym": True}, gptq(4, is_symmetric=True)),
    "GPTQ v2 of GPTQModel": Format(GPTQ | {"format": "gptq_v2"}, gptq(4, offset=0)),
    "GPTQ, one group": Format(GPTQ | {"group_size": -1}, gptq(4, group=64)),
    "AutoRound as GPTQ": Format(ROUND | {"packing_format": "auto_round:auto_gptq"}, gptq(4)),
    "AutoRound as AWQ": Format(ROUND | {"packing_format": "auto_round:auto_awq"}, awq()),
    "AutoRound": Format(ROUND | {"packing_format": "auto_round:gptqmodel"}, gptq(4, is_symmetric=True)),
    "compressed-tensors": Format(_packed(4, True), compressed(4, has_zeros=False)),
    "compressed-tensors, zeros": Format(_packed(4, False), compressed(4, has_zeros=True)),
    "compressed-tensors, zeros as bytes": Format(_packed(4, False), compressed(4, has_zeros=True, packs_zeros=False)),
    "compressed-tensors 8-bit, zeros as bytes": Format(
        _packed(8, False), compressed(8, has_zeros=True, packs_zeros=False)
    ),
    "compressed-tensors, channel": Format(
        _packed(4, False, strategy="channel", group_size=None), compressed(4, has_zeros=True, group=64)
    ),
    "compressed-tensors, act-order": Format(_packed(4, True), compressed(4, has_zeros=False, act_order=True)),
    "compressed-tensors 8-bit": Format(_packed(8, True), compressed(8, has_zeros=False)),
    "compressed-tensors FP8": Format(_scaled("float-quantized", "float", "channel"), fp8(lambda outputs: (outputs, 1))),
    "compressed-tensors FP8 in blocks": Format(
        _scaled("float-quantized", "float", "block", block_structure=[48, 40]), fp8_blocks("weight_scale")
    ),
    "compressed-tensors INT8": Format(_scaled("int-quantized", "int", "channel"), int8(has_zeros=False)),
    "compressed-tensors INT8, zeros": Format(
        _scaled("int-quantized", "int", "channel", symmetric=False), int8(has_zeros=True)
    ),
    "FP8": Format({"quant_method": "fp8", "activation_scheme": "static"}, fp8(lambda outputs: ())),
    "FP8, inverse scale": Format({"quant_method": "fp8"}, fp8(lambda outputs: (), "weight_scale_inv")),
    "FP8 in blocks": Format({"quant_method": "fp8", "weight_block_size": [48, 40]}, fp8_blocks("weight_scale_inv")),
    "nf4": Format(BNB, bitsandbytes(False)),
    "nf4, nested": Format(BNB | {"bnb_4bit_use_double_quant": True}, bitsandbytes(True)),
    "MLX": Format({"group_size": 32, "bits": 4}, mlx(4), key="quantization"),
    "MLX 8-bit": Format({"group_size": 32, "bits": 8}, mlx(8), key="quantization"),
    "MLX 2-bit": Format({"group_size": 32, "bits": 2}, mlx(2), key="quantization"),
    "MLX 3-bit": Format({"group_size": 32, "bits": 3}, mlx(3), key="quantization"),
    "MLX 5-bit": Format({"group_size": 32, "bits": 5}, mlx(5), key="quantization"),
    "MLX 6-bit": Format({"group_size": 64, "bits": 6}, mlx(6, 64), key="quantization"),
    "MLX mixed": Format({"group_size": 64, "bits": 4, "lm_head": {"bits": 3}}, mixed_mlx, key="quantization"),
}


def save_quantized(source: Path, target: Path, name: str) -> dict[str, Tensor]:
    """Write the checkpoint `source` (classic layout, one file) with random codes for its matrices in a format.

    Gate, norms, embedding and head stay as they are; in MLX only the norms do. Returns the weights by name.
    """
    from safetensors.torch import load_file

    target.mkdir()
    (target / "config.json").write_text((source / "config.json").read_text())
    entries = {key: value for key, value in FORMATS[name].config.items() if value is not ...}
    edit_config(target, **{FORMATS[name].key: entries})
    rng, weights, stored = np.random.default_rng(0), load_file(source / "model.safetensors"), {}
    for weight_name, weight in weights.items():
        if not _is_packed(weight_name, weight, name):
            stored[weight_name] = weight
            continue
        parts, weights[weight_name] = FORMATS[name].pack(rng, *weight.shape)
        stored |= {weight_name.removesuffix("weight") + part: tensor for part, tensor in parts.items()}
    if name.startswith("MLX"):
        stored = _stacked(stored)
    save_file(stored, target / "model.safetensors")
    return weights


def _is_packed(weight_name: str, weight: Tensor, name: str) -> bool:
    if name.startswith("MLX"):
        return weight.dim() == 2
    return "proj" in weight_name or ".experts." in weight_name


def _stacked(stored: Parts) -> Parts:
    """Stack the experts of each layer, as MLX does."""
    names = {"w1": "gate_proj", "w2": "down_proj", "w3": "up_proj"}
    stacks: dict[str, list[Tensor]] = {}
    for name in sorted(stored):  # fewer than ten experts: in their order
        if ".experts." in name:
            before, _, after = name.partition("experts.")
            _, matrix, part = after.split(".")
            stacks.setdefault(f"{before}switch_mlp.{names[matrix]}.{part}", []).append(stored[name])
    plain = {name: tensor for name, tensor in stored.items() if ".experts." not in name}
    return plain | {name: torch.stack(tensors) for name, tensors in stacks.items()}
