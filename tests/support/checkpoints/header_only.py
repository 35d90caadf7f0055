"""Checkpoints without weights: real shapes and headers in sparse files of full length."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

MIXTRAL_8X7B: dict[str, Any] = {
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 32768,
}
MIXTRAL_8X22B: dict[str, Any] = {
    "vocab_size": 32000,
    "hidden_size": 6144,
    "intermediate_size": 16384,
    "num_hidden_layers": 56,
    "num_attention_heads": 48,
    "num_key_value_heads": 8,
    "max_position_embeddings": 65536,
}
COMMON: dict[str, Any] = {
    "architectures": ["MixtralForCausalLM"],
    "num_local_experts": 8,
    "num_experts_per_tok": 2,
    "rms_norm_eps": 1e-5,
    "rope_theta": 1e6,
    "sliding_window": None,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "bos_token_id": 1,
    "eos_token_id": 2,
}
ELEMENT_BYTES = {"BF16": 2, "F16": 2, "F32": 4}


def save_headers(path: Path, shape: dict[str, Any], dtype: str = "BF16", **changes: Any) -> Path:
    """Write one file per layer and an index, as on the Hugging Face hub, but no weights."""
    path.mkdir(parents=True, exist_ok=True)
    config = COMMON | shape | changes
    (path / "config.json").write_text(json.dumps(config))
    weight_map = {}
    for number, shard in enumerate(_shards(config)):
        file = path / f"model-{number:05}.safetensors"
        _write_header(file, shard, dtype)
        weight_map |= dict.fromkeys(shard, file.name)
    (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return path


def _shards(config: dict[str, Any]) -> Iterator[dict[str, list[int]]]:
    dim, vocab = config["hidden_size"], config["vocab_size"]
    yield {"model.embed_tokens.weight": [vocab, dim], "model.norm.weight": [dim], "lm_head.weight": [vocab, dim]}
    for layer in range(config["num_hidden_layers"]):
        yield {f"model.layers.{layer}.{name}": sizes for name, sizes in _layer(config).items()}


def _layer(config: dict[str, Any]) -> dict[str, list[int]]:
    dim, hidden, experts = config["hidden_size"], config["intermediate_size"], config["num_local_experts"]
    kv = dim // config["num_attention_heads"] * config["num_key_value_heads"]
    tensors = {
        "input_layernorm.weight": [dim],
        "post_attention_layernorm.weight": [dim],
        "self_attn.q_proj.weight": [dim, dim],
        "self_attn.k_proj.weight": [kv, dim],
        "self_attn.v_proj.weight": [kv, dim],
        "self_attn.o_proj.weight": [dim, dim],
        "block_sparse_moe.gate.weight": [experts, dim],
    }
    for expert in range(experts):
        prefix = f"block_sparse_moe.experts.{expert}"
        tensors |= {f"{prefix}.w1.weight": [hidden, dim], f"{prefix}.w3.weight": [hidden, dim]}
        tensors |= {f"{prefix}.w2.weight": [dim, hidden]}
    return tensors


def _write_header(file: Path, tensors: dict[str, list[int]], dtype: str) -> None:
    header, end = {}, 0
    for name, sizes in tensors.items():
        start = end
        end += ELEMENT_BYTES[dtype] * sizes[0] * (sizes[1] if len(sizes) > 1 else 1)
        header[name] = {"dtype": dtype, "shape": sizes, "data_offsets": [start, end]}
    content = json.dumps(header).encode()
    with file.open("wb") as stream:
        stream.write(len(content).to_bytes(8, "little") + content)
        stream.truncate(8 + len(content) + end)
