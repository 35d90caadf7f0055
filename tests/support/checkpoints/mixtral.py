"""Checkpoints with random weights, made by transformers, which is also the oracle of their network.

Weights come in the classic or the fused layout, configs in the classic or the modern spelling. transformers is imported
where it is needed: that takes seconds.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from model.checkpoint.config_file import load_config
from model.checkpoint.tensor_names import expected_shapes

if TYPE_CHECKING:
    from transformers import MistralConfig, MixtralConfig


@dataclass(frozen=True)
class Shape:
    """Shape of a small network. num_experts 0: a dense Mistral."""

    dim: int = 32
    num_layers: int = 2
    num_heads: int = 4
    num_kv_heads: int = 2
    head_dim: int | None = None
    hidden_dim: int = 48
    num_experts: int = 8
    experts_per_token: int = 2
    window: int | None = None
    vocab_size: int = 101
    tied: bool = False
    theta: float = 1e4
    seed: int = 0
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def fields(self) -> dict[str, Any]:
        """Return the fields of config.json that are not transformers' defaults."""
        experts = {"num_local_experts": self.num_experts, "num_experts_per_tok": self.experts_per_token}
        return {
            "vocab_size": self.vocab_size,
            "hidden_size": self.dim,
            "intermediate_size": self.hidden_dim,
            "num_hidden_layers": self.num_layers,
            "num_attention_heads": self.num_heads,
            "num_key_value_heads": self.num_kv_heads,
            "head_dim": self.head_dim or self.dim // self.num_heads,
            "sliding_window": self.window,
            "max_position_embeddings": 1024,
            "rope_parameters": {"rope_type": "default", "rope_theta": self.theta},
            "tie_word_embeddings": self.tied,
            "bos_token_id": 1,
            "eos_token_id": 2,
            **(experts if self.num_experts else {}),
            **self.extra,
        }

    @property
    def hf_config(self) -> "MixtralConfig | MistralConfig":
        from transformers import MistralConfig, MixtralConfig

        return (MixtralConfig if self.num_experts else MistralConfig)(**self.fields)


def random_model(shape: Shape) -> torch.nn.Module:
    """Create the oracle. Weights have std 1/sqrt(fan_in), so that routing and attention matter; attention is eager."""
    from transformers import MistralForCausalLM, MixtralForCausalLM

    torch.manual_seed(shape.seed)
    config = shape.hf_config
    config._attn_implementation = "eager"
    model = (MixtralForCausalLM if shape.num_experts else MistralForCausalLM)(config).float().eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            _fill(name, weight, shape)
    return model


def _fill(name: str, weight: Tensor, shape: Shape) -> Tensor:
    if "norm" in name:
        return weight.uniform_(0.5, 1.5)
    return weight.normal_(std=1.0 if "embed" in name and not shape.tied else weight.shape[-1] ** -0.5)


def save_random_weights(shape: Shape, path: Path) -> Path:
    """Save a checkpoint without transformers, which is no oracle of it: its weights are not random_model()'s."""
    torch.manual_seed(shape.seed)
    name = "MixtralForCausalLM" if shape.num_experts else "MistralForCausalLM"
    defaults = {"architectures": [name], "rms_norm_eps": 1e-5, "dtype": "float32"}
    (path / "config.json").write_text(json.dumps(defaults | shape.fields))
    sizes = expected_shapes(load_config(path)[0], fused=False)
    tensors = {name: _fill(name, torch.empty(size, device="cpu"), shape) for name, size in sizes.items()}
    save_file(tensors, path / "model.safetensors")
    return path


def save_random_checkpoint(shape: Shape, path: Path) -> torch.nn.Module:
    """Save the model in transformers' own layout; return it."""
    model = random_model(shape)
    model.save_pretrained(path)
    return model


def save_embedding_checkpoint(shape: Shape, path: Path) -> torch.nn.Module:
    """Save a dense Mistral without its head, as embedding models are stored; return it. Its names have no "model."."""
    assert not shape.num_experts
    model: Any = random_model(shape)
    model.model.save_pretrained(path)
    return cast("torch.nn.Module", model.model)


def save_in_layout(model: Any, path: Path, fused: bool = False, modern: bool = False) -> Path:
    """Save the model in `path`. `fused`: experts of a layer in one tensor; `modern`: the config of transformers 5."""
    path.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(path)
    if fused:
        tensors = {name: weight.contiguous().clone() for name, weight in model.state_dict().items()}
        if model.config.tie_word_embeddings:
            del tensors["lm_head.weight"]
        save_file(tensors, path / "model.safetensors")
    if not modern:
        edit_config(path, **_classic_spelling(path))
    return path


def _classic_spelling(path: Path) -> dict[str, Any]:
    config = json.loads((path / "config.json").read_text())
    scaling = {name: value for name, value in config["rope_parameters"].items() if name != "rope_theta"}
    return {
        "rope_parameters": ...,
        "rope_theta": config["rope_parameters"]["rope_theta"],
        "rope_scaling": ... if scaling == {"rope_type": "default"} else scaling,
        "dtype": ...,
        "torch_dtype": config["dtype"],
    }


def edit_config(path: Path, **changes: Any) -> Path:
    """Set keys of config.json; `...` removes one."""
    file = path / "config.json"
    config = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({key: value for key, value in config.items() if value is not ...}))
    return path


def edit_tensors(path: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    """Change the tensors of model.safetensors in the directory `path`."""
    tensors = load_file(path / "model.safetensors")
    change(tensors)
    save_file(tensors, path / "model.safetensors")


def write_index(path: Path, weight_map: object) -> None:
    """Write the index of several safetensors files; a valid `weight_map` maps tensor names to file names."""
    (path / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
