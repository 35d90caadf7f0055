"""Read the shape of the network from the fields and tensors of a GGUF file."""

from typing import Literal

from model.checkpoint.gguf.fields import GgufFields
from model.checkpoint.gguf.file import GgufFile
from model.checkpoint.gguf.rope_scaling import gguf_rope_scaling
from model.checkpoint.gguf.tensors import without_ones
from model.checkpoint.json_files import printable
from model.config import MISTRAL, MISTRAL_EMBEDDING, MIXTRAL, ModelConfig

ARCHITECTURE = "llama"  # as llama.cpp names the networks of Mixtral, Mistral and Llama
DENSE_THETA = 10_000.0  # of a dense network without the field, as in llama.cpp
LAST_POOLING = 3  # llama.pooling_type of embedding models: 0 none, 1 mean, 2 first token, 3 last token, 4 rank
MISTRAL_WINDOW = 4096  # of Mistral-7B v0.1, the only one with a window; its theta is DENSE_THETA


def gguf_config(
    file: GgufFile, sliding_window: Literal["model", "none"] | int, rope_theta: float | None
) -> tuple[ModelConfig, list[str]]:
    """Return the config, and warnings of one line each.

    `rope_theta` overrides the file's. Raises CheckpointError for missing or invalid fields, and for features that the
    network does not implement.
    """
    warnings: list[str] = []
    top, fields = GgufFields(file), GgufFields(file, f"{ARCHITECTURE}.")
    _check_supported(top, fields)
    num_experts = fields.integer("expert_count", 0, 1024, default=0)
    dim = fields.integer("embedding_length", 1, 1 << 20)
    num_heads = fields.integer("attention.head_count", 1, 4096)
    vocab_size = _vocab_size(file, top)
    theta = rope_theta or _theta(fields, num_experts)
    head_dim = _head_dim(fields, dim, num_heads)
    window = _window(fields, sliding_window)
    embeds = _embeds(fields)
    scaling = gguf_rope_scaling(file, fields, head_dim, theta, warnings)
    config = ModelConfig(
        architecture=_architecture(num_experts, is_embedding=embeds),
        vocab_size=vocab_size,
        dim=dim,
        num_layers=fields.integer("block_count", 1, 1024),
        num_heads=num_heads,
        num_kv_heads=_num_kv_heads(fields, num_heads),
        head_dim=head_dim,
        hidden_dim=fields.integer("feed_forward_length", 1, 1 << 24),
        num_experts=num_experts,
        experts_per_token=fields.integer("expert_used_count", 1, num_experts) if num_experts else 0,
        window=window,
        context_len=_context_len(fields, num_experts, theta, sliding_window, warnings),
        rope_theta=theta,
        norm_eps=fields.positive_float("attention.layer_norm_rms_epsilon", at_most=1.0),
        tied_head="output.weight" not in file.tensors,
        dtype=_dtype(file),
        bos_token_id=_token_id(top, "bos_token_id", vocab_size),
        eos_token_ids=_eos_token_ids(top, vocab_size),
        embeds=embeds,
        rope_divisors=scaling.divisors,
        rope_factor=scaling.factor,
    )
    return config, warnings


def _embeds(fields: GgufFields) -> bool:
    """Return whether the file is an embedding model. Raises CheckpointError unless its pooling is the last token's."""
    pooling = fields.integer("pooling_type", 0, 4, default=0)
    if pooling not in (0, LAST_POOLING):
        raise fields.error(f"llama.pooling_type is {pooling}; only {LAST_POOLING}, the last token's, is supported")
    return pooling == LAST_POOLING


def _architecture(num_experts: int, *, is_embedding: bool) -> str:
    if num_experts:
        return MIXTRAL
    return MISTRAL_EMBEDDING if is_embedding else MISTRAL


def _check_supported(top: GgufFields, fields: GgufFields) -> None:
    kind = top.text("general.type")
    if kind not in (None, "model"):
        raise top.error(f"general.type is {printable(kind)}, not a model")
    architecture = top.text("general.architecture")
    if architecture != ARCHITECTURE:
        raise top.error(
            f"general.architecture is {printable(architecture)}; only 'llama' (Mixtral, Mistral) is supported"
        )
    if fields.flag("attention.causal") is False:
        raise fields.error("llama.attention.causal is false; only causal attention is supported")
    if fields.integer("expert_shared_count", 0, 1 << 16, default=0):
        raise fields.error("llama.expert_shared_count is not 0; shared experts are not supported")


def _num_kv_heads(fields: GgufFields, num_heads: int) -> int:
    num_kv_heads = fields.integer("attention.head_count_kv", 1, num_heads, default=num_heads)
    if num_heads % num_kv_heads:
        raise fields.error(f"llama.attention.head_count {num_heads} is not a multiple of head_count_kv {num_kv_heads}")
    return num_kv_heads


def _head_dim(fields: GgufFields, dim: int, num_heads: int) -> int:
    if dim % num_heads and "attention.key_length" not in fields:
        raise fields.error(f"llama.embedding_length {dim} is not a multiple of attention.head_count {num_heads}")
    head_dim = fields.integer("attention.key_length", 2, 1 << 14, default=max(2, dim // num_heads))
    for name in ("attention.value_length", "rope.dimension_count"):
        size = fields.integer(name, 1, 1 << 14, default=head_dim)
        if size != head_dim:
            raise fields.error(f"llama.{name} is {size}, but a head has {head_dim}; different sizes are not supported")
    if head_dim % 2:
        raise fields.error(f"the head dimension {head_dim} is odd; rotary positions need pairs")
    return head_dim


def _theta(fields: GgufFields, num_experts: int) -> float:
    """Return theta. Early conversions of Mixtral lack it and mean 1e6, where the format's default is 10000."""
    if num_experts and "rope.freq_base" not in fields:
        raise fields.error(
            "llama.rope.freq_base is missing, as in early conversions of Mixtral; set --rope-theta 1000000 for "
            "Mixtral-8x7B and 8x22B"
        )
    return fields.positive_float("rope.freq_base", at_most=1e12, default=DENSE_THETA)


def _window(fields: GgufFields, choice: Literal["model", "none"] | int) -> int | None:
    if choice == "model":
        return fields.integer("attention.sliding_window", 0, 1 << 26, default=0) or None
    if choice != "none" and choice < 1:
        raise fields.error(f"a sliding window of {choice} is not possible: give at least 1, or none")
    return None if choice == "none" else choice


def _context_len(
    fields: GgufFields, num_experts: int, theta: float, choice: Literal["model", "none"] | int, warnings: list[str]
) -> int:
    """Return the context; that of Mistral-7B v0.1 is limited to its window, which GGUF files do not store."""
    length = fields.integer("context_length", 1, 1 << 26)
    is_known = choice != "model" or "attention.sliding_window" in fields
    if num_experts or is_known or theta != DENSE_THETA or length <= MISTRAL_WINDOW:
        return length
    warnings.append(
        f"context limited to {MISTRAL_WINDOW} of {length} tokens, because the file does not store a sliding window: "
        f"--sliding-window {MISTRAL_WINDOW} (Mistral-7B v0.1) or --sliding-window none lifts the limit"
    )
    return MISTRAL_WINDOW


def _vocab_size(file: GgufFile, top: GgufFields) -> int:
    """Return the rows of the embedding: llama.vocab_size may be absent, and the embedding may be padded."""
    embedding = file.tensors.get("token_embd.weight")
    shape = () if embedding is None else without_ones(embedding.shape)
    if len(shape) != 2:
        raise top.error("tensor token_embd.weight is missing, or not a matrix")
    return shape[0]


def _dtype(file: GgufFile) -> str:
    """Return float32 or float16 if all matrices are stored so, else bfloat16, in which quantized weights are served."""
    types = {tensor.dtype for tensor in file.tensors.values() if len(without_ones(tensor.shape)) > 1}
    return {"F32": "float32", "F16": "float16"}.get(types.pop(), "bfloat16") if len(types) == 1 else "bfloat16"


def _token_id(top: GgufFields, name: str, vocab_size: int) -> int | None:
    key = f"tokenizer.ggml.{name}"
    return top.integer(key, 0, vocab_size - 1) if key in top else None


def _eos_token_ids(top: GgufFields, vocab_size: int) -> tuple[int, ...]:
    """Return the ids that end an answer: of a text (eos) and of a turn (eot)."""
    ids = [_token_id(top, name, vocab_size) for name in ("eos_token_id", "eot_token_id")]
    return tuple(dict.fromkeys(token_id for token_id in ids if token_id is not None))
