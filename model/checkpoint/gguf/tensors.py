"""Find the network's weights in a GGUF file, whose names differ from Hugging Face's.

Experts come in two layouts: merged, one tensor of all experts per matrix (`blk.0.ffn_gate_exps.weight`, since 2024),
and one tensor per expert (`blk.0.ffn_gate.3.weight`). Both give the same weights: an expert of a merged tensor is a
range of its bytes.
"""

from collections.abc import Iterator, Mapping
from dataclasses import replace

from model.checkpoint.errors import CheckpointError
from model.checkpoint.gguf.file import GgufFile
from model.checkpoint.json_files import printable
from model.checkpoint.stored_tensor import StoredTensor
from model.checkpoint.tensor_names import EMBEDDING, HEAD, NORM, Shape, and_more, expected_shapes
from model.config import ModelConfig

TOP_NAMES = {EMBEDDING: "token_embd.weight", NORM: "output_norm.weight", HEAD: "output.weight"}
LAYER_NAMES = {
    "input_layernorm.weight": "attn_norm.weight",
    "self_attn.q_proj.weight": "attn_q.weight",
    "self_attn.k_proj.weight": "attn_k.weight",
    "self_attn.v_proj.weight": "attn_v.weight",
    "self_attn.o_proj.weight": "attn_output.weight",
    "post_attention_layernorm.weight": "ffn_norm.weight",
    "block_sparse_moe.gate.weight": "ffn_gate_inp.weight",
    "mlp.gate_proj.weight": "ffn_gate.weight",
    "mlp.up_proj.weight": "ffn_up.weight",
    "mlp.down_proj.weight": "ffn_down.weight",
}
EXPERT_NAMES = {"w1": "ffn_gate", "w2": "ffn_down", "w3": "ffn_up"}
ROPE_DIVISORS = "rope_freqs.weight"  # part of the config, not of the weights
# What other networks of the same architecture name have.
FOREIGN = {
    "rope_factors_long.weight": "rotary angles that are scaled by the context's length",
    "rope_factors_short.weight": "rotary angles that are scaled by the context's length",
    "_shexp.weight": "shared experts",
    "_norm.weight": "norms of queries and keys",
    ".bias": "biases",
}


def gguf_tensors(file: GgufFile, config: ModelConfig) -> dict[str, StoredTensor]:
    """Return the weights by their names in Hugging Face's classic layout.

    Raises CheckpointError unless names and shapes are exactly those that the config implies.
    """
    found: dict[str, StoredTensor] = {}
    used = {ROPE_DIVISORS}
    shapes = expected_shapes(config, fused=False)
    if config.tied_head:
        del shapes[HEAD]
    for name, shape in shapes.items():
        stored_name, tensor = _find(file, name, config)
        if without_ones(tensor.shape) != without_ones(shape):
            raise _error(file, stored_name, f"has shape {list(tensor.shape)}, but the config requires {list(shape)}")
        used.add(stored_name)
        found[name] = replace(tensor, name=name, shape=shape, interleaved_heads=_interleaved_heads(name, config))
    _check_all_used(file.tensors, used, file)
    return found


def without_ones(shape: Shape) -> Shape:
    """Return the shape without its outer dimensions of 1: a file may list them or not, as llama.cpp reads it."""
    return without_ones(shape[1:]) if len(shape) > 1 and shape[0] == 1 else shape


def _find(file: GgufFile, name: str, config: ModelConfig) -> tuple[str, StoredTensor]:
    """Return the tensor of a weight, and the name that the file has for it."""
    candidates = list(_candidates(name))
    for stored_name, expert in candidates:
        tensor = file.tensors.get(stored_name)
        if tensor is not None:
            return stored_name, tensor if expert is None else _expert_of(file, tensor, expert, config.num_experts)
    raise CheckpointError(f"{file.path}: tensor {' or '.join(stored_name for stored_name, _ in candidates)} is missing")


def _candidates(name: str) -> Iterator[tuple[str, int | None]]:
    """Yield the names in the file, each with the index of an expert in a merged tensor or None.

    model.layers.0.block_sparse_moe.experts.3.w1.weight: blk.0.ffn_gate_exps.weight, 3; blk.0.ffn_gate.3.weight, None.
    """
    if name in TOP_NAMES:
        yield TOP_NAMES[name], None
        return
    layer, _, rest = name.removeprefix("model.layers.").partition(".")
    if rest in LAYER_NAMES:
        yield f"blk.{layer}.{LAYER_NAMES[rest]}", None
        return
    _, _, expert, matrix, _ = rest.split(".")  # block_sparse_moe.experts.3.w1.weight
    yield f"blk.{layer}.{EXPERT_NAMES[matrix]}_exps.weight", int(expert)
    yield f"blk.{layer}.{EXPERT_NAMES[matrix]}.{expert}.weight", None


def _expert_of(file: GgufFile, merged: StoredTensor, expert: int, num_experts: int) -> StoredTensor:
    shape = without_ones(merged.shape)
    shape = (1, *shape) if num_experts == 1 else shape
    if len(shape) != 3 or shape[0] != num_experts:
        raise _error(file, merged.name, f"has shape {list(merged.shape)}, but the model has {num_experts} experts")
    num_bytes = merged.num_bytes // num_experts
    return replace(merged, shape=shape[1:], start=merged.start + expert * num_bytes, num_bytes=num_bytes)


def _interleaved_heads(name: str, config: ModelConfig) -> int:
    heads = {"q_proj": config.num_heads, "k_proj": config.num_kv_heads}
    return next((count for part, count in heads.items() if part in name), 0)


def _check_all_used(tensors: Mapping[str, StoredTensor], used: set[str], file: GgufFile) -> None:
    unknown = [name for name in tensors if name not in used]
    if unknown:
        foreign = next((reason for mark, reason in FOREIGN.items() if unknown[0].endswith(mark)), "")
        reason = f": {foreign} are not supported" if foreign else ""
        raise _error(file, unknown[0], f"does not belong to a Mixtral or Mistral network{reason}{and_more(unknown)}")


def _error(file: GgufFile, name: str, message: str) -> CheckpointError:
    return CheckpointError(f"{file.path}: tensor {printable(name)} {message}")
