"""Read adapter_config.json, PEFT's description of a LoRA adapter.

What changes the meaning of the matrices and is not implemented is refused; what only concerns training is ignored.
"""

import math
import stat
from dataclasses import dataclass
from pathlib import Path

from model.checkpoint.config_fields import JsonFields
from model.checkpoint.errors import CheckpointError
from model.checkpoint.json_files import printable, read_json_object

CONFIG_NAME = "adapter_config.json"
MAX_CONFIG_BYTES = 1 << 20
MAX_RANK = 512
MAX_ALPHA = 1e6

# Keys that must be absent, null, false or empty, with what they would mean.
REFUSED = {
    "use_dora": "DoRA (other lengths of the base model's rows)",
    "modules_to_save": "whole modules in place of those of the base model",
    "lora_bias": "biases",
    "rank_pattern": "ranks that differ from module to module",
    "alpha_pattern": "scales that differ from module to module",
    "target_parameters": "terms of the fused tensors of all experts",
    "trainable_token_indices": "embeddings of single tokens",
    "layer_replication": "layers that occur several times",
    "fan_in_fan_out": "transposed matrices",
    "alora_invocation_tokens": "terms that begin at certain tokens",
    "use_qalora": "pooled inputs",
    "arrow_config": "a choice among adapters for each token",
}
# Initializations that change the base model: such an adapter belongs to other weights than those that are served.
CHANGES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")


@dataclass(frozen=True)
class AdapterConfig:
    """Rank and scale of all terms of an adapter."""

    rank: int
    scale: float  # lora_alpha / rank, or lora_alpha / sqrt(rank) with rank stabilization (Kalajdzievski 2023)
    base_model: str  # as the adapter names it, for messages


def read_adapter_config(directory: Path) -> AdapterConfig:
    """Read the config of the adapter in `directory`.

    Raises CheckpointError for anything that is not a LoRA adapter, and for the kinds that are not implemented.
    """
    _check_directory(directory)
    path = directory / CONFIG_NAME
    fields = JsonFields(path, read_json_object(path, MAX_CONFIG_BYTES))
    if (kind := fields.get("peft_type")) != "LORA":
        raise fields.error(f"peft_type is {printable(kind)}; only LoRA adapters can be served")
    for key, meaning in REFUSED.items():
        if value := fields.get(key):
            raise fields.error(f"{key} is {printable(value)}: adapters with {meaning} are not supported")
    if (bias := fields.get("bias", "none")) != "none":
        raise fields.error(f"bias is {printable(bias)}: adapters with biases are not supported")
    start = fields.get("init_lora_weights")
    if isinstance(start, str) and start.lower().startswith(CHANGES_BASE):
        raise fields.error(
            f"init_lora_weights is {printable(start)}, which changes the base model: save the adapter converted to "
            "plain LoRA (path_initial_model_for_weight_conversion of PEFT)"
        )
    rank = fields.positive("r", MAX_RANK)
    alpha = fields.positive_float("lora_alpha", MAX_ALPHA)
    scale = alpha / (math.sqrt(rank) if fields.flag("use_rslora") else rank)
    return AdapterConfig(rank, scale, printable(fields.get("base_model_name_or_path")))


def _check_directory(directory: Path) -> None:
    try:
        mode = directory.stat().st_mode
    except OSError as error:
        reason = "no such directory" if isinstance(error, FileNotFoundError) else f"cannot be read: {error.strerror}"
        raise CheckpointError(f"{directory}: {reason}") from None
    if not stat.S_ISDIR(mode):
        raise CheckpointError(f"{directory} is a file; give the directory that {CONFIG_NAME} is in")
