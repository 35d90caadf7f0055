"""GGUF files with random weights, written with the `gguf` package, and their weights as its own decoders read them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Type
from numpy.typing import NDArray
from sentencepiece import sentencepiece_model_pb2

Floats = NDArray[np.float32]

# Positions of the float16 factors in a block of the types that the package cannot quantize.
FACTORS = {
    Type.Q2_K: (80, 82),
    Type.Q3_K: (108,),
    Type.Q4_K: (0, 2),
    Type.Q5_K: (0, 2),
    Type.Q6_K: (208,),
    Type.IQ4_NL: (0,),
    Type.IQ4_XS: (0,),
    Type.IQ3_S: (0,),
    Type.IQ3_XXS: (0,),
    Type.IQ2_S: (0,),
    Type.IQ2_XS: (0,),
    Type.IQ2_XXS: (0,),
}


@dataclass(frozen=True)
class GgufShape:
    """Shape of a network, and how its file is written."""

    dim: int = 256
    num_layers: int = 1
    num_heads: int = 4
    num_kv_heads: int = 2
    hidden_dim: int = 256
    num_experts: int = 4
    vocab_size: int = 101
    tied: bool = False
    merged: bool = True  # experts of a layer in one tensor per matrix
    seed: int = 0
    fields: Mapping[str, Any] = field(default_factory=dict)  # set after the usual fields; None removes one
    tensors_per_part: int = 0  # 0: a single file
    empty_first_part: bool = False  # of several: it has the fields alone
    alignment: int = 32  # of the tensors, in bytes
    shuffled: bool = False  # tensors in a random order
    rope_divisors: tuple[float, ...] = ()  # of rotary pairs, as Llama 3.1's files have them
    num_dims: int = 0  # at least so many dimensions are listed for each tensor, the outer ones 1


def all_of(type_name: str) -> Callable[[str], Type]:
    """Give every matrix the same type, norms and gates F32."""
    return lambda name: Type.F32 if "norm" in name or "gate_inp" in name else Type[type_name]


def q4_k_m(name: str) -> Type:
    """Mix types within a file, as llama.cpp's Q4_K_M does."""
    if "norm" in name or "gate_inp" in name:
        return Type.F32
    special = {"attn_k": Type.Q8_0, "attn_v": Type.Q8_0, "attn_output": Type.Q5_K, "output.weight": Type.Q6_K}
    return next((kind for mark, kind in special.items() if mark in name), Type.Q4_K)


def iq2_m(name: str) -> Type:
    """Mix all types with code books and types without, as llama.cpp's IQ2 and IQ3 files do."""
    if "norm" in name or "gate_inp" in name:
        return Type.F32
    special = {"attn_k": Type.Q8_0, "attn_v": Type.Q4_K, "attn_output": Type.IQ3_S, "output.weight": Type.Q5_K}
    special |= {"ffn_gate": Type.IQ2_XXS, "ffn_down": Type.IQ2_XS, "ffn_up": Type.IQ3_XXS, "token_embd": Type.IQ3_S}
    return next((kind for mark, kind in special.items() if mark in name), Type.IQ2_S)


def write_gguf(path: Path, shape: GgufShape, type_of: Callable[[str], Type] = q4_k_m) -> dict[str, Floats]:
    """Write a file; return its weights by their names and in the order of Hugging Face's classic layout."""
    rng = np.random.default_rng(shape.seed)
    writer = gguf.GGUFWriter(
        path, "llama", split_max_tensors=shape.tensors_per_part, small_first_shard=shape.empty_first_part
    )
    if shape.alignment != 32:
        writer.add_custom_alignment(shape.alignment)
    for key, value in (usual_fields(shape) | dict(shape.fields)).items():
        add_field(writer, key, value)
    expected: dict[str, Floats] = {}
    tensors: list[tuple[str, NDArray[Any]]] = []
    for name, size, targets in tensors_of(shape):
        if len(size) < 3:
            raw, expected[targets[0]] = random_tensor(rng, size, type_of(name))
            tensors.append((name, raw))
            continue
        names = [name if shape.merged else name.replace("_exps", f".{expert}") for expert in range(len(targets))]
        experts = [random_tensor(rng, size[1:], type_of(one)) for one in names]
        expected |= {target: weight for target, (_, weight) in zip(targets, experts, strict=True)}
        raws = [raw for raw, _ in experts]
        tensors += [(name, np.stack(raws))] if shape.merged else zip(names, raws, strict=True)
    order = rng.permutation(len(tensors)) if shape.shuffled else range(len(tensors))
    for index in order:
        name, raw = tensors[index]
        least = raw[0] if raw.ndim == 3 and len(raw) == 1 else raw  # as llama-quantize writes a single expert
        raw = least.reshape((1,) * (shape.num_dims - least.ndim) + least.shape)
        writer.add_tensor(name, raw, raw_dtype=type_of(name))
    if shape.rope_divisors:
        writer.add_tensor("rope_freqs.weight", np.array(shape.rope_divisors, np.float32))
    finish(writer)
    return _in_rotary_order(expected, shape)


def vocabulary_fields(model: Path) -> dict[str, Any]:
    """Return the fields that llama.cpp's converter writes for a SentencePiece model."""
    proto = sentencepiece_model_pb2.ModelProto.FromString(model.read_bytes())
    values = {
        "model": "llama",
        "tokens": [piece.piece for piece in proto.pieces],
        "scores": [piece.score for piece in proto.pieces],
        "token_type": [piece.type for piece in proto.pieces],
        "bos_token_id": proto.trainer_spec.bos_id,
        "eos_token_id": proto.trainer_spec.eos_id,
        "unknown_token_id": proto.trainer_spec.unk_id,
    }
    return {f"tokenizer.ggml.{name}": value for name, value in values.items()}


def write_fields(path: Path, fields: Mapping[str, Any]) -> Path:
    """Write a file without tensors."""
    writer = gguf.GGUFWriter(path, "llama")
    for key, value in fields.items():
        add_field(writer, key, value)
    finish(writer)
    return path


def usual_fields(shape: GgufShape) -> dict[str, Any]:
    return {
        "llama.block_count": shape.num_layers,
        "llama.context_length": 512,
        "llama.embedding_length": shape.dim,
        "llama.feed_forward_length": shape.hidden_dim,
        "llama.attention.head_count": shape.num_heads,
        "llama.attention.head_count_kv": shape.num_kv_heads,
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
        "llama.rope.freq_base": 1e6,
        "llama.rope.dimension_count": shape.dim // shape.num_heads,
        "llama.vocab_size": shape.vocab_size,
    } | ({"llama.expert_count": shape.num_experts, "llama.expert_used_count": 2} if shape.num_experts else {})


def random_tensor(rng: np.random.Generator, size: tuple[int, ...], kind: Type) -> tuple[NDArray[Any], Floats]:
    """Return a tensor's bytes and the weights that they stand for, of about 1/sqrt(inputs)."""
    weight = rng.standard_normal(size, np.float32) * np.float32(size[-1] ** -0.5)
    if len(size) == 1:
        weight = np.abs(weight) + np.float32(0.5)
    raw = random_blocks(rng, size, kind) if kind in FACTORS else gguf.quants.quantize(weight, kind)
    return raw, gguf.quants.dequantize(raw, kind).reshape(size)


def random_blocks(rng: np.random.Generator, size: tuple[int, ...], kind: Type) -> NDArray[np.uint8]:
    """Return random blocks of one of the types in FACTORS, as rows of a tensor of `size` weights."""
    block_len, block_bytes = gguf.GGML_QUANT_SIZES[kind]
    blocks = rng.integers(0, 256, (*size[:-1], size[-1] // block_len, block_bytes), np.uint8)
    for position in FACTORS[kind]:
        factor = rng.uniform(1e-5, 1e-4, blocks.shape[:-1]).astype(np.float16)
        blocks[..., position : position + 2] = factor[..., None].view(np.uint8)
    return blocks.reshape(*size[:-1], -1)


def tensors_of(shape: GgufShape) -> list[tuple[str, tuple[int, ...], list[str]]]:
    """List each tensor: its name in the file, its size, and the weights of Hugging Face's layout in it."""
    dim, hidden, kv = shape.dim, shape.hidden_dim, shape.dim // shape.num_heads * shape.num_kv_heads
    found: list[tuple[str, tuple[int, ...], list[str]]] = [
        ("token_embd.weight", (shape.vocab_size, dim), ["model.embed_tokens.weight"]),
        ("output_norm.weight", (dim,), ["model.norm.weight"]),
    ]
    if not shape.tied:
        found.append(("output.weight", (shape.vocab_size, dim), ["lm_head.weight"]))
    for layer in range(shape.num_layers):
        block, target = f"blk.{layer}.", f"model.layers.{layer}."
        attention = {"q": ("attn_q", dim), "k": ("attn_k", kv), "v": ("attn_v", kv), "o": ("attn_output", dim)}
        found += [
            (f"{block}{name}.weight", (rows, dim), [f"{target}self_attn.{part}_proj.weight"])
            for part, (name, rows) in attention.items()
        ]
        found.append((f"{block}attn_norm.weight", (dim,), [f"{target}input_layernorm.weight"]))
        found.append((f"{block}ffn_norm.weight", (dim,), [f"{target}post_attention_layernorm.weight"]))
        sizes = {"gate": (hidden, dim), "up": (hidden, dim), "down": (dim, hidden)}
        if not shape.num_experts:
            found += [(f"{block}ffn_{m}.weight", s, [f"{target}mlp.{m}_proj.weight"]) for m, s in sizes.items()]
            continue
        moe = f"{target}block_sparse_moe."
        found.append((f"{block}ffn_gate_inp.weight", (shape.num_experts, dim), [f"{moe}gate.weight"]))
        for matrix, w in (("gate", "w1"), ("up", "w3"), ("down", "w2")):
            names = [f"{moe}experts.{expert}.{w}.weight" for expert in range(shape.num_experts)]
            found.append((f"{block}ffn_{matrix}_exps.weight", (shape.num_experts, *sizes[matrix]), names))
    return found


def _in_rotary_order(weights: dict[str, Floats], shape: GgufShape) -> dict[str, Floats]:
    """Undo what llama.cpp's converter does to the rows of q and k, one row at a time."""
    head_dim = shape.dim // shape.num_heads
    for name, weight in weights.items():
        if "q_proj" in name or "k_proj" in name:
            rows = [
                head * head_dim + 2 * (row % (head_dim // 2)) + row // (head_dim // 2)
                for head in range(len(weight) // head_dim)
                for row in range(head_dim)
            ]
            weights[name] = weight[rows]
    return weights


def finish(writer: gguf.GGUFWriter) -> None:
    """Write everything that was added, and close the file."""
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def add_field(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    """Add a field by its value's type: integers as uint32, floats as float32; None adds nothing."""
    adders: dict[type, Callable[[str, Any], None]] = {
        bool: writer.add_bool,
        int: writer.add_uint32,
        float: writer.add_float32,
        str: writer.add_string,
        list: writer.add_array,
    }
    if value is not None:
        adders[type(value)](key, value)
