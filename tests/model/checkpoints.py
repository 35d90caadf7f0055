"""Writes small random checkpoints with transformers, in either layout of weights and either dialect of config."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import MistralConfig, MistralForCausalLM, MixtralConfig, MixtralForCausalLM

TINY: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "sliding_window": None,
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
TINY_MOE = TINY | {"num_local_experts": 4, "num_experts_per_tok": 2}


def random_oracle(shape: dict[str, Any], seed: int = 0) -> torch.nn.Module:
    """transformers' network of this shape, float32, weights of standard deviation 1/sqrt(fan_in)."""
    torch.manual_seed(seed)
    settings = shape | {"attn_implementation": "eager", "rope_parameters": {"rope_type": "default", "rope_theta": 1e4}}
    if "num_local_experts" in shape:
        oracle: torch.nn.Module = MixtralForCausalLM(MixtralConfig(**settings))
    else:
        oracle = MistralForCausalLM(MistralConfig(**settings))
    with torch.no_grad():
        for parameter in oracle.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=parameter.shape[-1] ** -0.5)
            else:
                parameter.uniform_(0.5, 1.5)
    return oracle.eval()


def save_checkpoint(oracle: Any, path: Path, fused: bool = False, modern: bool = False) -> Path:
    """`fused`: the experts of a layer in one tensor; `modern`: the config as transformers 5 writes it."""
    path.mkdir(parents=True, exist_ok=True)
    oracle.save_pretrained(path)
    if fused:
        tensors = {name: weight.contiguous().clone() for name, weight in oracle.state_dict().items()}
        if oracle.config.tie_word_embeddings:
            del tensors["lm_head.weight"]
        save_file(tensors, path / "model.safetensors")
    if not modern:
        edit_config(path, **_classic_dialect(path))
    return path


def _classic_dialect(path: Path) -> dict[str, Any]:
    config = json.loads((path / "config.json").read_text())
    return {
        "rope_parameters": ...,
        "rope_theta": config["rope_parameters"]["rope_theta"],
        "dtype": ...,
        "torch_dtype": config["dtype"],
    }


def edit_config(path: Path, **changes: Any) -> Path:
    """Sets keys of config.json; `...` removes one."""
    file = path / "config.json"
    config = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({key: value for key, value in config.items() if value is not ...}))
    return path
