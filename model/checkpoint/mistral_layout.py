"""Read checkpoints in Mistral's own layout: params.json and consolidated.safetensors. Imports no torch.

Source of names and defaults: mistral-inference.
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Literal

from model.checkpoint.config_fields import JsonFields
from model.checkpoint.errors import CheckpointError
from model.checkpoint.headers import read_headers
from model.checkpoint.json_files import printable, read_json_object
from model.checkpoint.stored_tensor import StoredTensor
from model.checkpoint.tensor_names import (
    EMBEDDING,
    HEAD,
    NORM,
    and_more,
    check_tensor,
    embedding_dtype,
    expected_shapes,
)
from model.config import MISTRAL, MIXTRAL, ModelConfig

PARAMS, WEIGHTS = "params.json", "consolidated.safetensors"
MAX_PARAMS_BYTES = 1 << 20
THETA, WINDOW_THETA = 1e6, 1e4  # defaults of networks without and with a window
CONTEXT_LEN = 32_768  # params.json may lack it
BOS, EOS = 1, 2  # in all of Mistral's vocabularies
TOP_NAMES = {EMBEDDING: "tok_embeddings.weight", NORM: "norm.weight", HEAD: "output.weight"}
LAYER_NAMES = {
    "input_layernorm": "attention_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attention.wq",
    "self_attn.k_proj": "attention.wk",
    "self_attn.v_proj": "attention.wv",
    "self_attn.o_proj": "attention.wo",
    "block_sparse_moe": "feed_forward",
    "mlp.gate_proj": "feed_forward.w1",
    "mlp.up_proj": "feed_forward.w3",
    "mlp.down_proj": "feed_forward.w2",
}


def is_mistral_layout(path: Path) -> bool:
    """Return whether directory `path` has this layout. With a config.json as well, that one counts."""
    try:
        return (path / PARAMS).is_file() and not (path / "config.json").exists()
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from None


def mistral_config(
    path: Path, sliding_window: Literal["model", "none"] | int, rope_theta: float | None
) -> tuple[ModelConfig, list[str]]:
    """Read the config of directory `path`; return it with warnings of one line each. Raises CheckpointError."""
    fields = JsonFields(path / PARAMS, read_json_object(path / PARAMS, MAX_PARAMS_BYTES))
    for name in ("lora", "quantization", "vision_encoder", "yarn", "llama_4_scaling"):
        if fields.get(name) is not None:
            raise fields.error(f"{name} is set; networks with it are not supported")
    moe = fields.section("moe")
    num_experts = 0 if moe is None else moe.positive("num_experts", at_most=1024)
    num_heads = fields.positive("n_heads", at_most=4096)
    window = _window(fields, sliding_window)
    stored_window = None if fields.get("sliding_window") is None else fields.positive("sliding_window", 1 << 26)
    warnings: list[str] = []
    config = ModelConfig(
        architecture=MISTRAL if moe is None else MIXTRAL,
        vocab_size=fields.positive("vocab_size", at_most=1 << 24),
        dim=fields.positive("dim", at_most=1 << 20),
        num_layers=fields.positive("n_layers", at_most=1024),
        num_heads=num_heads,
        num_kv_heads=_num_kv_heads(fields, num_heads),
        head_dim=_head_dim(fields),
        hidden_dim=fields.positive("hidden_dim", at_most=1 << 24),
        num_experts=num_experts,
        experts_per_token=0 if moe is None else moe.positive("num_experts_per_tok", at_most=num_experts),
        window=window,
        context_len=_context_len(fields, warnings),
        rope_theta=rope_theta or _theta(fields, stored_window),
        norm_eps=fields.positive_float("norm_eps", at_most=1.0),
        tied_head=fields.flag("tied_embeddings"),
        dtype=_dtype(path),
        bos_token_id=BOS,
        eos_token_ids=(EOS,),
    )
    return config, warnings


def mistral_tensors(path: Path, config: ModelConfig) -> dict[str, StoredTensor]:
    """Return the weights by their names in Hugging Face's classic layout.

    Raises CheckpointError unless names, shapes and types are exactly those that the config implies.
    """
    stored = read_headers(path, WEIGHTS)
    weights: dict[str, StoredTensor] = {}
    for name, shape in expected_shapes(config, fused=False).items():
        if name == HEAD and config.tied_head:
            continue
        own_name = _own_name(name)
        if own_name not in stored:
            raise CheckpointError(f"{path}: tensor {own_name} is missing")
        check_tensor(stored[own_name], shape)
        weights[name] = replace(stored[own_name], name=name, interleaved_heads=_interleaved_heads(name, config))
    unknown = sorted(set(stored) - set(map(_own_name, weights)))
    if unknown:
        file = stored[unknown[0]].file
        raise CheckpointError(
            f"{file}: tensor {printable(unknown[0])} does not belong to this model{and_more(unknown)}"
        )
    return weights


def _own_name(name: str) -> str:
    """Return Mistral's name: model.layers.0.self_attn.q_proj.weight is layers.0.attention.wq.weight."""
    if name in TOP_NAMES:
        return TOP_NAMES[name]
    layer, _, rest = name.removeprefix("model.layers.").partition(".")
    theirs = next(part for part in LAYER_NAMES if rest.startswith(part))
    return f"layers.{layer}.{LAYER_NAMES[theirs]}{rest.removeprefix(theirs)}"


def _interleaved_heads(name: str, config: ModelConfig) -> int:
    heads = {"q_proj": config.num_heads, "k_proj": config.num_kv_heads}
    return next((count for part, count in heads.items() if part in name), 0)


def _num_kv_heads(fields: JsonFields, num_heads: int) -> int:
    num_kv_heads = fields.positive("n_kv_heads", at_most=num_heads)
    if num_heads % num_kv_heads:
        raise fields.error(f"n_heads {num_heads} is not a multiple of n_kv_heads {num_kv_heads}")
    return num_kv_heads


def _head_dim(fields: JsonFields) -> int:
    head_dim = fields.positive("head_dim", at_most=1 << 14)
    if head_dim % 2:
        raise fields.error(f"head_dim {head_dim} is odd; rotary positions need pairs")
    return head_dim


def _window(fields: JsonFields, choice: Literal["model", "none"] | int) -> int | None:
    if choice == "none":
        return None
    if choice == "model":
        return None if fields.get("sliding_window") is None else fields.positive("sliding_window", at_most=1 << 26)
    if choice < 1:
        raise CheckpointError(f"a sliding window of {choice} is not possible: give at least 1, or none")
    return choice


def _theta(fields: JsonFields, stored_window: int | None) -> float:
    if fields.get("rope_theta") is not None:
        return fields.positive_float("rope_theta", at_most=1e12)
    return THETA if stored_window is None else WINDOW_THETA


def _context_len(fields: JsonFields, warnings: list[str]) -> int:
    names: Iterator[str] = (name for name in ("max_seq_len", "max_position_embeddings") if fields.get(name) is not None)
    name = next(names, None)
    if name is not None:
        return fields.positive(name, at_most=1 << 26)
    warnings.append(f"{PARAMS} has no context length: using {CONTEXT_LEN} tokens")
    return CONTEXT_LEN


def _dtype(path: Path) -> str:
    """Return the type of the embedding; params.json does not store one."""
    return embedding_dtype(read_headers(path, WEIGHTS).get(TOP_NAMES[EMBEDDING]))
