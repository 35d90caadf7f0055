"""Write a network's config in Hugging Face's layout, whatever layout it was read from. Imports no torch."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from model.checkpoint.config_file import load_config
from model.checkpoint.rope_scaling import listed
from model.checkpoint.sentence_embedding import LAST_TOKEN, MODULES, STEPS
from model.config import MISTRAL_EMBEDDING, MIXTRAL, ModelConfig

POOLING = "1_Pooling"


def write_config(directory: Path, config: ModelConfig, dtype: str) -> None:
    """Write config.json, and for embedding models modules.json, so that load_config() reads `config` with `dtype`.

    Call it when generation_config.json is in its place. Raises OSError.
    """
    _write(directory / "config.json", _fields(config, dtype))
    if config.embeds:
        (directory / POOLING).mkdir()
        _write(directory / POOLING / "config.json", {f"pooling_mode_{LAST_TOKEN}": True})
        paths = ("", POOLING, "2_Normalize")
        modules = [{"type": f"models.{step}", "path": path} for step, path in zip(STEPS, paths, strict=True)]
        _write(directory / MODULES, modules)
    written, _ = load_config(directory)
    assert written == replace(config, dtype=dtype), "a config that is written is read again as it was"


def _fields(config: ModelConfig, dtype: str) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "architectures": [config.architecture],
        "model_type": "mixtral" if config.architecture == MIXTRAL else "mistral",
        "vocab_size": config.vocab_size,
        "hidden_size": config.dim,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "intermediate_size": config.hidden_dim,
        "max_position_embeddings": config.context_len,
        "sliding_window": config.window,
        "rope_theta": config.rope_theta,
        "rms_norm_eps": config.norm_eps,
        "tie_word_embeddings": config.tied_head and config.architecture != MISTRAL_EMBEDDING,
        "torch_dtype": dtype,
        "hidden_act": "silu",
    }
    if config.num_experts:
        fields |= {"num_local_experts": config.num_experts, "num_experts_per_tok": config.experts_per_token}
    if config.rope_divisors or config.rope_factor != 1:
        fields["rope_scaling"] = listed(config)
    if config.bos_token_id is not None:
        fields["bos_token_id"] = config.bos_token_id
    return fields | ({"eos_token_id": list(config.eos_token_ids)} if config.eos_token_ids else {})


def _write(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
