"""Names and shapes of the tensors that a checkpoint must contain, and the part of the network each belongs to.

Experts come in two layouts, both of Hugging Face: classic, one tensor per expert and matrix
(`block_sparse_moe.experts.3.w1.weight`), and fused, one per layer (`mlp.experts.gate_up_proj`, w1 above w3).
Imports no torch.
"""

import math
import re
from collections.abc import Iterable
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

from model.checkpoint.errors import CheckpointError
from model.checkpoint.headers import read_headers
from model.checkpoint.json_files import printable
from model.checkpoint.stored_tensor import StoredTensor, StoredWeight
from model.config import ModelConfig

PREFIX = "model."
EMBEDDING, NORM, HEAD = "model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"
FUSED_W13, FUSED_W2 = "mlp.experts.gate_up_proj", "mlp.experts.down_proj"
QUANTIZED = (".qweight", ".scales", ".weight_packed", ".weight_scale", ".weight_scale_inv", ".absmax")  # ends of names
# Old conversions store the rotary angles, which the config already determines.
STORED_ANGLES = re.compile(r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq")
READ_DTYPES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}  # by the names of safetensors

Shape = tuple[int, ...]

PARTS = ("embedding", "attention", "ffn", "experts", "gate", "norms", "head")  # ffn: in networks without experts
# The first key that occurs in a tensor's name gives its part.
PART_MARKS = {
    "embed_tokens": "embedding",
    "self_attn": "attention",
    "norm": "norms",
    "lm_head": "head",
    ".gate.weight": "gate",
    "experts": "experts",
    "mlp": "ffn",
}


def checked_tensors(path: Path, config: ModelConfig) -> dict[str, StoredTensor]:
    """Read the headers and return the tensors by name.

    Raises CheckpointError unless names, shapes and dtypes are exactly those that the config implies.
    """
    tensors = read_headers(path)
    if not config.generates:
        tensors = with_prefix(tensors)
    stored = {name: tensor for name, tensor in tensors.items() if not STORED_ANGLES.fullmatch(name)}
    expected = expected_shapes(config, fused=any(name.endswith(FUSED_W13) for name in stored))
    if config.tied_head and HEAD not in stored:
        del expected[HEAD]
    missing = [name for name in expected if name not in stored]
    unknown = [name for name in stored if name not in expected]
    _check_plain(path, unknown)
    if missing:
        raise CheckpointError(f"{path}: tensor {missing[0]} is missing{and_more(missing)}")
    if unknown:
        file = stored[unknown[0]].file
        raise CheckpointError(
            f"{file}: tensor {printable(unknown[0])} does not belong to this model{and_more(unknown)}"
        )
    for name, shape in expected.items():
        check_tensor(stored[name], shape)
    return stored


def _check_plain(path: Path, unknown: Iterable[str]) -> None:
    quantized = next((name for name in unknown if name.endswith(QUANTIZED)), None)
    if quantized is not None:
        raise CheckpointError(
            f"{path}: tensor {printable(quantized)} is part of a quantized matrix, and config.json does not name its "
            "format: quantization_config is missing"
        )


def with_prefix(tensors: dict[str, StoredTensor]) -> dict[str, StoredTensor]:
    """Return the tensors under the names that they have in a model with a head: "norm.weight" becomes
    "model.norm.weight"."""
    names = {name: name if name.startswith(PREFIX) or name == HEAD else PREFIX + name for name in tensors}
    return {names[name]: replace(tensor, name=names[name]) for name, tensor in tensors.items()}


def embedding_dtype(embedding: StoredTensor | None) -> str:
    """Return the type of an embedding; bfloat16 if it is stored in another one (quantized), or is missing."""
    return READ_DTYPES.get(embedding.dtype, "bfloat16") if embedding else "bfloat16"


def expected_shapes(config: ModelConfig, fused: bool) -> dict[str, Shape]:
    """Return the shape of every tensor of a checkpoint with this config, the head included."""
    shapes: dict[str, Shape] = {EMBEDDING: (config.vocab_size, config.dim)}
    for layer in range(config.num_layers):
        names = _layer_shapes(config, fused)
        shapes |= {f"model.layers.{layer}.{name}": shape for name, shape in names.items()}
    return shapes | {NORM: (config.dim,), HEAD: (config.vocab_size, config.dim)}


def _layer_shapes(config: ModelConfig, fused: bool) -> dict[str, Shape]:
    dim, q, kv = config.dim, config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    return {
        "input_layernorm.weight": (dim,),
        "self_attn.q_proj.weight": (q, dim),
        "self_attn.k_proj.weight": (kv, dim),
        "self_attn.v_proj.weight": (kv, dim),
        "self_attn.o_proj.weight": (dim, q),
        "post_attention_layernorm.weight": (dim,),
    } | _ffn_shapes(config, fused)


def _ffn_shapes(config: ModelConfig, fused: bool) -> dict[str, Shape]:
    up: Shape = (config.hidden_dim, config.dim)
    down: Shape = (config.dim, config.hidden_dim)
    if not config.num_experts:
        return {"mlp.gate_proj.weight": up, "mlp.up_proj.weight": up, "mlp.down_proj.weight": down}
    experts, gate = range(config.num_experts), (config.num_experts, config.dim)
    if fused:
        w13 = (config.num_experts, 2 * config.hidden_dim, config.dim)
        return {"mlp.gate.weight": gate, FUSED_W13: w13, FUSED_W2: (config.num_experts, *down)}
    matrices = {"w1": up, "w2": down, "w3": up}
    names = {f"block_sparse_moe.experts.{e}.{w}.weight": shape for e in experts for w, shape in matrices.items()}
    return {"block_sparse_moe.gate.weight": gate} | names


def check_tensor(tensor: StoredTensor, shape: Shape) -> None:
    """Raise CheckpointError unless a tensor of floats has this shape."""
    where = f"{tensor.file}: tensor {tensor.name}"
    if tensor.shape != shape:
        raise CheckpointError(f"{where} has shape {list(tensor.shape)}, but the config requires {list(shape)}")
    if tensor.dtype not in READ_DTYPES:
        raise CheckpointError(f"{where} has dtype {tensor.dtype}; supported are {', '.join(READ_DTYPES)}")


def and_more(names: list[str]) -> str:
    """Return the end of a message that names the first of several tensors."""
    return f" (and {len(names) - 1} more)" if len(names) > 1 else ""


def parameters_by_part(tensors: Iterable[StoredWeight]) -> dict[str, int]:
    """Return the number of weights of each of PARTS. A tied head counts as 0."""
    counts = dict.fromkeys(PARTS, 0)
    for tensor in tensors:
        counts[part_of(tensor.name)] += math.prod(tensor.shape)
    return counts


@lru_cache(maxsize=1 << 14)  # asked for thousands of tensors in each of many plans
def part_of(name: str) -> str:
    """Return the part that a tensor belongs to: "model.layers.0.block_sparse_moe.experts.3.w1.weight" -> "experts"."""
    return next(part for mark, part in PART_MARKS.items() if mark in name)
