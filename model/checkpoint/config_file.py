"""Read config.json and generation_config.json into a ModelConfig. Imports no torch.

Two spellings are read: rope_theta and torch_dtype, or rope_parameters.rope_theta and dtype (transformers 5).
"""

from dataclasses import replace
from pathlib import Path
from typing import Literal

from model.checkpoint.config_fields import JsonFields
from model.checkpoint.errors import CheckpointError
from model.checkpoint.headers import read_headers
from model.checkpoint.json_files import printable, read_json_object
from model.checkpoint.quantized.scheme import read_scheme
from model.checkpoint.rope_scaling import DIVISORS, RopeShape, rope_scaling
from model.checkpoint.sentence_embedding import embeds
from model.checkpoint.stored_tensor import PackedEncoding, StoredTensor
from model.checkpoint.tensor_names import EMBEDDING, embedding_dtype, with_prefix
from model.config import MISTRAL, MISTRAL_EMBEDDING, MIXTRAL, ModelConfig

MAX_CONFIG_BYTES = 1 << 20
ARCHITECTURES = (MIXTRAL, MISTRAL, MISTRAL_EMBEDDING)
DTYPES = ("float32", "bfloat16", "float16")
MISTRAL_WINDOW = 4096  # the window of Mistral-7B v0.1, which transformers assumes if the key is absent


def load_config(
    path: Path,
    sliding_window: Literal["model", "none"] | int = "model",
    experts_per_token: int | None = None,
    rope_theta: float | None = None,
) -> tuple[ModelConfig, list[str]]:
    """Read the config of the checkpoint in directory `path`; return it with warnings of one line each.

    `sliding_window` (unless "model"), `experts_per_token` and `rope_theta` override the checkpoint's values. Raises
    CheckpointError for missing or invalid values, and for features that the network does not implement.
    """
    check_directory(path)
    fields = JsonFields(path / "config.json", read_json_object(path / "config.json", MAX_CONFIG_BYTES))
    warnings: list[str] = []
    config = _parse(fields, path, sliding_window, rope_theta, warnings)
    return with_experts_per_token(config, experts_per_token), warnings


def read_encoding(path: Path) -> PackedEncoding | None:
    """Return how the checkpoint in directory `path` is quantized; None if it is not. Raises CheckpointError."""
    return read_scheme(JsonFields(path / "config.json", read_json_object(path / "config.json", MAX_CONFIG_BYTES)))


def with_experts_per_token(config: ModelConfig, experts_per_token: int | None) -> ModelConfig:
    """Return the config with the operator's number of experts per token, if set. Raises CheckpointError."""
    if experts_per_token is None:
        return config
    if not 1 <= experts_per_token <= config.num_experts:
        has = f"has {config.num_experts} experts" if config.num_experts else "has no experts"
        raise CheckpointError(f"{experts_per_token} experts per token are not possible: the model {has}")
    return replace(config, experts_per_token=experts_per_token)


def check_directory(path: Path) -> None:
    """Raise CheckpointError unless `path` is a directory."""
    try:
        if not path.exists():
            raise CheckpointError(f"{path} does not exist")
        if not path.is_dir():
            raise CheckpointError(f"{path} is not a directory")
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from None


def _parse(
    fields: JsonFields,
    path: Path,
    sliding_window: Literal["model", "none"] | int,
    rope_theta: float | None,
    warnings: list[str],
) -> ModelConfig:
    architecture = _architecture(fields)
    _check_supported(fields)
    is_moe = architecture == MIXTRAL
    num_experts = fields.positive("num_local_experts", at_most=1024) if is_moe else 0
    num_heads = fields.positive("num_attention_heads", at_most=4096)
    dim = fields.positive("hidden_size", at_most=1 << 20)
    vocab_size = fields.positive("vocab_size", at_most=1 << 24)
    head_dim, theta = _head_dim(fields, dim, num_heads), _rope_theta(fields, rope_theta)
    context_len = fields.positive("max_position_embeddings", at_most=1 << 26)
    scaling = rope_scaling(fields, RopeShape(head_dim, theta, context_len), warnings)
    return ModelConfig(
        architecture=architecture,
        vocab_size=vocab_size,
        dim=dim,
        num_layers=fields.positive("num_hidden_layers", at_most=1024),
        num_heads=num_heads,
        num_kv_heads=_num_kv_heads(fields, num_heads),
        head_dim=head_dim,
        hidden_dim=fields.positive("intermediate_size", at_most=1 << 24),
        num_experts=num_experts,
        experts_per_token=fields.positive("num_experts_per_tok", at_most=num_experts) if is_moe else 0,
        window=_window(fields, architecture, sliding_window, warnings),
        context_len=context_len,
        rope_theta=theta,
        norm_eps=fields.positive_float("rms_norm_eps", at_most=1.0),
        tied_head=architecture == MISTRAL_EMBEDDING or fields.flag("tie_word_embeddings"),
        dtype=_dtype(fields, path, warnings),
        bos_token_id=_bos_token_id(fields, vocab_size),
        eos_token_ids=_eos_token_ids(fields, path, vocab_size),
        embeds=embeds(path, architecture, warnings),
        rope_divisors=scaling.divisors,
        rope_factor=scaling.factor,
    )


def _architecture(fields: JsonFields) -> str:
    names = fields.get("architectures")
    if isinstance(names, list) and len(names) == 1 and names[0] in ARCHITECTURES:
        return str(names[0])
    raise fields.error(f"architectures is {printable(names)}; supported is one of {', '.join(ARCHITECTURES)}")


def _check_supported(fields: JsonFields) -> None:
    """Raise CheckpointError for features that change the computation and are not implemented."""
    if fields.get("hidden_act", "silu") != "silu":
        raise fields.error(f"hidden_act is {printable(fields.get('hidden_act'))}; only 'silu' is supported")
    for name in ("attention_bias", "mlp_bias"):
        if fields.flag(name):
            raise fields.error(f"{name} is true; networks with biases are not supported")
    if fields.get("is_causal") is False or fields.flag("use_bidirectional_attention"):
        raise fields.error("attention is bidirectional; only causal attention is supported")
    read_scheme(fields)
    kinds = fields.get("layer_types")
    if kinds is not None and len({str(kind) for kind in kinds} if isinstance(kinds, list) else ()) != 1:
        raise fields.error(f"layer_types is {printable(kinds)}; only the same attention in all layers is supported")


def _num_kv_heads(fields: JsonFields, num_heads: int) -> int:
    if fields.get("num_key_value_heads", "absent") is None:  # as transformers reads null
        return num_heads
    num_kv_heads = fields.positive("num_key_value_heads", at_most=num_heads)
    if num_heads % num_kv_heads:
        raise fields.error(f"num_attention_heads {num_heads} is not a multiple of num_key_value_heads {num_kv_heads}")
    return num_kv_heads


def _head_dim(fields: JsonFields, dim: int, num_heads: int) -> int:
    if fields.get("head_dim") is not None:
        head_dim = fields.positive("head_dim", at_most=1 << 14)
    elif dim % num_heads:
        raise fields.error(
            f"hidden_size {dim} is not a multiple of num_attention_heads {num_heads}, and head_dim is missing"
        )
    else:
        head_dim = dim // num_heads
    if head_dim % 2:
        raise fields.error(f"the head dimension {head_dim} is odd; rotary positions need pairs")
    return head_dim


def _rope_theta(fields: JsonFields, choice: float | None) -> float:
    """Return the operator's choice, else theta from either spelling.

    There is no default: a wrong theta gives fluent nonsense.
    """
    found = []
    for name in ("rope_parameters", "rope_scaling"):
        rope = fields.section(name)
        if rope is not None:
            _check_all_rotated(rope)
            if rope.get("rope_type") == DIVISORS and choice not in (None, fields.get("rope_theta")):
                raise rope.error("the scaled angles of a pack have one base: give --rope-theta to `smoe pack`")
            if rope.get("rope_theta") is not None:
                found.append(rope.positive_float("rope_theta", at_most=1e12))
    if fields.get("rope_theta") is not None:
        found.append(fields.positive_float("rope_theta", at_most=1e12))
    if choice is not None:
        return choice
    if not found:
        raise fields.error("rope_theta and rope_parameters.rope_theta are both missing; --rope-theta sets it")
    if len(set(found)) > 1:
        raise fields.error(f"rope_theta occurs twice with different values: {', '.join(map(str, found))}")
    return found[0]


def _check_all_rotated(rope: JsonFields) -> None:
    if rope.get("partial_rotary_factor", 1) != 1:
        raise rope.error(
            f"partial_rotary_factor is {printable(rope.get('partial_rotary_factor'))}; only 1 is supported"
        )


def _window(
    fields: JsonFields, architecture: str, choice: Literal["model", "none"] | int, warnings: list[str]
) -> int | None:
    """Return the operator's choice, else the config's window; warn if the config's looks wrong."""
    stored = _stored_window(fields)
    if choice == "none":
        return None
    if choice != "model":
        if choice < 1:
            raise CheckpointError(f"a sliding window of {choice} is not possible: give at least 1, or none")
        return choice
    if architecture == MIXTRAL and stored == MISTRAL_WINDOW:
        warnings.append(
            f"config.json gives this Mixtral a sliding window of {stored}, a mistake of old conversions: "
            "--sliding-window none switches it off"
        )
    if architecture != MIXTRAL and fields.get("sliding_window", "absent") == "absent":
        warnings.append(f"config.json has no sliding_window: using {MISTRAL_WINDOW}, as in Mistral-7B v0.1")
        return MISTRAL_WINDOW
    return stored


def _stored_window(fields: JsonFields) -> int | None:
    return None if fields.get("sliding_window") is None else fields.positive("sliding_window", at_most=1 << 26)


def _dtype(fields: JsonFields, path: Path, warnings: list[str]) -> str:
    name = fields.get("torch_dtype") if fields.get("dtype") is None else fields.get("dtype")
    if name is None:
        embedding = _stored_embedding(path)
        source = "" if embedding is None else f"; the embedding is stored as {embedding.dtype}"
        warnings.append(f"config.json has no dtype: using {embedding_dtype(embedding)}{source}")
        return embedding_dtype(embedding)
    if name not in DTYPES:
        raise fields.error(f"dtype is {printable(name)}; supported are {', '.join(DTYPES)}")
    return str(name)


def _stored_embedding(path: Path) -> StoredTensor | None:
    try:
        return with_prefix(read_headers(path)).get(EMBEDDING)
    except CheckpointError:  # who reads the weights reports it
        return None


def _bos_token_id(fields: JsonFields, vocab_size: int) -> int | None:
    return None if fields.get("bos_token_id") is None else fields.token_id("bos_token_id", vocab_size)


def _eos_token_ids(fields: JsonFields, path: Path, vocab_size: int) -> tuple[int, ...]:
    """Return the union of both files' ids, generation_config.json first: some checkpoints list them in only one."""
    file = path / "generation_config.json"
    sources = [fields]
    if file.exists():
        sources.insert(0, JsonFields(file, read_json_object(file, MAX_CONFIG_BYTES)))
    ids = [token_id for source in sources for token_id in source.token_ids("eos_token_id", vocab_size)]
    return tuple(dict.fromkeys(ids))
