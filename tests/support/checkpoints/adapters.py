"""LoRA adapters with random numbers in PEFT's files, and their merge into a checkpoint by the definition."""

import json
import math
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from model.config import ModelConfig
from tests.support.checkpoints.mixtral import edit_tensors

PREFIX = "base_model.model."
CONFIG: dict[str, Any] = {"peft_type": "LORA", "base_model_name_or_path": "org/base", "bias": "none", "r": 4}


def module_shapes(config: ModelConfig) -> dict[str, tuple[int, int]]:
    """Return outputs and inputs of each matrix of a layer that LoRA may change, by its name in the checkpoint."""
    q, kv = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    up, down = (config.hidden_dim, config.dim), (config.dim, config.hidden_dim)
    shapes = {"q": (q, config.dim), "k": (kv, config.dim), "v": (kv, config.dim), "o": (config.dim, q)}
    shapes = {f"self_attn.{name}_proj": shape for name, shape in shapes.items()}
    if not config.num_experts:
        return shapes | {"mlp.gate_proj": up, "mlp.up_proj": up, "mlp.down_proj": down}
    for expert in range(config.num_experts):
        of_expert = {"w1": up, "w2": down, "w3": up}
        shapes |= {f"block_sparse_moe.experts.{expert}.{name}": shape for name, shape in of_expert.items()}
    return shapes


def random_tensors(
    config: ModelConfig, rank: int = 4, seed: int = 0, dtype: torch.dtype = torch.float32, share: float = 1.0
) -> dict[str, Tensor]:
    """Draw A and B of a `share` of all matrices; a term is about a quarter as large as its matrix."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for layer in range(config.num_layers):
        for module, (num_outputs, num_inputs) in module_shapes(config).items():
            if torch.rand((), generator=generator) >= share:
                continue
            name = f"{PREFIX}model.layers.{layer}.{module}"
            a, b = (
                torch.randn(rank, num_inputs, generator=generator),
                torch.randn(num_outputs, rank, generator=generator),
            )
            tensors[f"{name}.lora_A.weight"] = (a * num_inputs**-0.5).to(dtype)
            tensors[f"{name}.lora_B.weight"] = (b * 0.25 * rank**-0.5).to(dtype)
    return tensors


def save_adapter(directory: Path, tensors: dict[str, Tensor], **changes: Any) -> Path:
    """Write an adapter; `changes` are of its config, and `...` removes a key."""
    directory.mkdir(parents=True, exist_ok=True)
    rank = len(next((tensor for name, tensor in tensors.items() if "lora_A" in name), torch.zeros(4, 1)))
    config = CONFIG | {"r": rank, "lora_alpha": rank} | changes
    config = {key: value for key, value in config.items() if value is not ...}
    (directory / "adapter_config.json").write_text(json.dumps(config))
    save_file(tensors, directory / "adapter_model.safetensors")
    return directory


def merge(checkpoint: Path, adapter: Path) -> None:
    """Add the adapter's products to the matrices of a checkpoint in the classic layout, in float64."""
    config = json.loads((adapter / "adapter_config.json").read_text())
    root = math.sqrt(config["r"]) if config.get("use_rslora") else config["r"]
    factors = {name: tensor.double() for name, tensor in load_file(adapter / "adapter_model.safetensors").items()}

    def change(tensors: dict[str, Tensor]) -> None:
        for name, b in factors.items():
            if ".lora_B." in name:
                term = config["lora_alpha"] / root * (b @ factors[name.replace("lora_B", "lora_A")])
                weight = name.removeprefix(PREFIX).replace("lora_B.", "")
                tensors[weight] = (tensors[weight].double() + term).to(tensors[weight].dtype)

    edit_tensors(checkpoint, change)
