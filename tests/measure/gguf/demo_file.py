"""Write the bundled model as a GGUF file in float32, with widths that K-quants can hold.

    python -m tests.measure.gguf.demo_file FILE

Blocks of K-quants have 256 numbers, and the bundled model is 192 wide. Zeros make it 256 wide, its FFN 512, and its
heads 8, four for each KV head. The function stays the same: rows and columns of zeros add nothing, and RMSNorm, which
divides by the number of columns, gets smaller weights and a smaller epsilon.
"""

import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from numpy.typing import NDArray
from safetensors.torch import load_file

from model.checkpoint.config_file import load_config
from model.config import ModelConfig
from tests.support.checkpoints.gguf import add_field, finish, vocabulary_fields
from tests.support.paths import ROOT

Floats = NDArray[np.float32]

DEMO = ROOT / "model/demo"
BLOCK = 256


def write_demo(path: Path) -> None:
    """Write the file."""
    config, _ = load_config(DEMO)
    writer = gguf.GGUFWriter(path, "llama")
    for key, value in (_fields(config) | vocabulary_fields(DEMO / "tokenizer.model")).items():
        add_field(writer, key, value)
    for name, weight in _tensors(config):
        writer.add_tensor(name, np.ascontiguousarray(weight))
    finish(writer)


def _padded(size: int) -> int:
    return -(-size // BLOCK) * BLOCK


def _heads_per_kv_head(config: ModelConfig) -> int:
    return _padded(config.dim) // config.head_dim // config.num_kv_heads


def _fields(config: ModelConfig) -> dict[str, Any]:
    return {
        "llama.block_count": config.num_layers,
        "llama.context_length": config.context_len,
        "llama.embedding_length": _padded(config.dim),
        "llama.feed_forward_length": _padded(config.hidden_dim),
        "llama.attention.head_count": _heads_per_kv_head(config) * config.num_kv_heads,
        "llama.attention.head_count_kv": config.num_kv_heads,
        "llama.attention.layer_norm_rms_epsilon": config.norm_eps * config.dim / _padded(config.dim),
        "llama.rope.freq_base": float(config.rope_theta),
        "llama.rope.dimension_count": config.head_dim,
        "llama.vocab_size": config.vocab_size,
        "llama.expert_count": config.num_experts,
        "llama.expert_used_count": config.experts_per_token,
    }


def _tensors(config: ModelConfig) -> Iterator[tuple[str, Floats]]:
    """Yield the tensors by their names in the file."""
    weights = {name: weight.float().numpy() for name, weight in load_file(DEMO / "model.safetensors").items()}
    yield "token_embd.weight", _wide(weights["model.embed_tokens.weight"])
    yield "output_norm.weight", _norm(weights["model.norm.weight"])
    yield "output.weight", _wide(weights["lm_head.weight"])
    for layer in range(config.num_layers):
        of, block = f"model.layers.{layer}.", f"blk.{layer}."
        yield f"{block}attn_norm.weight", _norm(weights[f"{of}input_layernorm.weight"])
        yield f"{block}ffn_norm.weight", _norm(weights[f"{of}post_attention_layernorm.weight"])
        for part in "qkvo":
            name = f"{block}attn_{'output' if part == 'o' else part}.weight"
            yield name, _attention(config, part, weights[f"{of}self_attn.{part}_proj.weight"])
        yield f"{block}ffn_gate_inp.weight", _wide(weights[f"{of}block_sparse_moe.gate.weight"])
        for matrix, w in (("gate", "w1"), ("up", "w3"), ("down", "w2")):
            experts = [
                weights[f"{of}block_sparse_moe.experts.{expert}.{w}.weight"] for expert in range(config.num_experts)
            ]
            yield f"{block}ffn_{matrix}_exps.weight", np.stack([_tall(_wide(expert)) for expert in experts])


def _wide(weight: Floats) -> Floats:
    return np.pad(weight, ((0, 0), (0, _padded(weight.shape[1]) - weight.shape[1])))


def _tall(weight: Floats) -> Floats:
    return np.pad(weight, ((0, _padded(len(weight)) - len(weight)), (0, 0)))


def _norm(weight: Floats) -> Floats:
    """Return weights for sums of squares that are divided by more columns."""
    wide: Floats = np.pad(weight, (0, _padded(len(weight)) - len(weight)))
    return wide * np.float32(math.sqrt(len(weight) / len(wide)))


def _attention(config: ModelConfig, part: str, weight: Floats) -> Floats:
    if part == "o":
        return _tall(_with_idle_heads(config, weight.T).T)
    if part == "q":
        weight = _with_idle_heads(config, weight)
    return _wide(weight if part == "v" else _interleaved(weight, config.head_dim))


def _with_idle_heads(config: ModelConfig, rows: Floats) -> Floats:
    """Append heads of zeros to the heads of each KV head."""
    by_kv_head = rows.reshape(config.num_kv_heads, -1, config.head_dim, rows.shape[1])
    idle = _heads_per_kv_head(config) - by_kv_head.shape[1]
    return np.pad(by_kv_head, ((0, 0), (0, idle), (0, 0), (0, 0))).reshape(-1, rows.shape[1])


def _interleaved(rows: Floats, head_dim: int) -> Floats:
    """Put rows of q and k into the order of llama.cpp's rotation: pairs of rows that rotate together."""
    halves = rows.reshape(-1, 2, head_dim // 2, rows.shape[1])
    return halves.swapaxes(1, 2).reshape(rows.shape)


if __name__ == "__main__":
    write_demo(Path(sys.argv[1]))
