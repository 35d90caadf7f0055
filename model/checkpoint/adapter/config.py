"""Read adapter_config.json, PEFT's description of a LoRA adapter.

What changes the meaning of the matrices and is not implemented is refused; what only concerns training is ignored.
"""

import math
import re
import stat
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from model.checkpoint.config_fields import JsonFields
from model.checkpoint.errors import CheckpointError
from model.checkpoint.json_files import printable, read_json_object

CONFIG_NAME = "adapter_config.json"
MAX_CONFIG_BYTES = 1 << 20
MAX_RANK = 512
MAX_ALPHA = 1e6
MAX_PATTERN_CHARS = 256
# With more of these, or repeated groups, matching a name could take time without end.
MAX_REPETITIONS = 2
MAX_GROUPS = 4
# Steps of matching a name, by the number of repetitions. Each tries as many ends as a name has characters, from each of
# the name's dots on, and what follows may match some characters more.
STEPS = (100, 1600, 512 * 64)
# Of all patterns of ranks and scales: 3,200 plain names, since some programs write one for each module. Matching all
# names of Mixtral-8x7B then takes about 2 s, in which nothing else runs.
MAX_STEPS = 320_000
_REPETITION = re.compile(r"[*+{]|(?<!\()\?")
_ASSERTION = re.compile(r"\\[bB]|\(\?<?[=!]")  # of which any number may follow a repetition
_REPEATED_GROUP = re.compile(r"\)[*+{]")

# Keys that must be absent, null, false or empty, with what they would mean.
REFUSED = {
    "use_dora": "DoRA (other lengths of the base model's rows)",
    "modules_to_save": "whole modules in place of those of the base model",
    "lora_bias": "biases",
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


Number = TypeVar("Number", int, float)


@dataclass(frozen=True)
class ByModule(Generic[Number]):
    """A number of each module: that of the first pattern that matches its name, or the default.

    A pattern is a regular expression for the end of a name, from its beginning or from a dot on: q_proj and
    layers.0.self_attn.q_proj match model.layers.0.self_attn.q_proj, and proj does not.
    """

    default: Number
    patterns: tuple[tuple[re.Pattern[str], Number], ...] = ()

    def of(self, module: str) -> Number:
        return next((number for pattern, number in self.patterns if pattern.match(module)), self.default)


@dataclass(frozen=True)
class AdapterConfig:
    """Ranks and scales of an adapter's terms."""

    ranks: ByModule[int]
    alphas: ByModule[float]
    is_rank_stabilized: bool  # scales are lora_alpha / sqrt(rank) (Kalajdzievski 2023), else lora_alpha / rank
    base_model: str  # as the adapter names it, for messages

    def scale_of(self, module: str, rank: int) -> float:
        """Return the scale of a module's term of this rank. `module`: its name in the base model."""
        return self.alphas.of(module) / (math.sqrt(rank) if self.is_rank_stabilized else rank)


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
    ranks, alphas = _patterns(fields, "rank_pattern"), _patterns(fields, "alpha_pattern")
    if sum(_steps(key) for _, _, key in (*ranks, *alphas)) > MAX_STEPS:
        raise fields.error(
            "rank_pattern and alpha_pattern take too long to match; supported are, of both together, 3,200 plain "
            "names, 200 patterns with a repetition or 9 with two, and fewer with alternatives"
        )
    return AdapterConfig(
        ByModule(
            fields.positive("r", MAX_RANK),
            tuple((pattern, values.positive(key, MAX_RANK)) for pattern, values, key in ranks),
        ),
        ByModule(
            fields.positive_float("lora_alpha", MAX_ALPHA),
            tuple((pattern, values.positive_float(key, MAX_ALPHA)) for pattern, values, key in alphas),
        ),
        fields.flag("use_rslora"),
        printable(fields.get("base_model_name_or_path")),
    )


def _patterns(fields: JsonFields, name: str) -> list[tuple[re.Pattern[str], JsonFields, str]]:
    """Return the patterns of an object, each with the fields and the key of its number."""
    values = fields.section(name)
    keys = [] if values is None else values.names()
    return [(_pattern(fields, name, key), values, key) for key in keys if values is not None]


def _steps(pattern: str) -> int:
    """Return how many steps it takes at most to find that a pattern does not match a name: those of its repetitions,
    times the choices of its alternatives, which are most if all groups have equally many."""
    num_repetitions, num_groups = len(_REPETITION.findall(pattern)), max(1, pattern.count("("))
    choices = -(-pattern.count("|") // num_groups) + 1
    return int(STEPS[num_repetitions] * choices**num_groups)


def _pattern(fields: JsonFields, name: str, key: str) -> re.Pattern[str]:
    """Compile a pattern as PEFT does, unless matching it could take long."""
    is_simple = len(_REPETITION.findall(key)) <= MAX_REPETITIONS and key.count("(") <= MAX_GROUPS
    is_simple = is_simple and not _REPEATED_GROUP.search(key) and not _ASSERTION.search(key)
    if len(key) > MAX_PATTERN_CHARS or not key.isprintable() or not is_simple:
        raise fields.error(
            f"{name} has the pattern {printable(key)}; supported are {MAX_PATTERN_CHARS} characters with "
            f"{MAX_REPETITIONS} repetitions and {MAX_GROUPS} groups, none of which is repeated, without assertions"
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of syntax that a later Python may read in another way
            return re.compile(rf"(.*\.)?({key})$")
    except (re.error, OverflowError, RecursionError):
        raise fields.error(f"{name} has the pattern {printable(key)}, which is not a regular expression") from None


def _check_directory(directory: Path) -> None:
    try:
        mode = directory.stat().st_mode
    except OSError as error:
        reason = "no such directory" if isinstance(error, FileNotFoundError) else f"cannot be read: {error.strerror}"
        raise CheckpointError(f"{directory}: {reason}") from None
    if not stat.S_ISDIR(mode):
        raise CheckpointError(f"{directory} is a file; give the directory that {CONFIG_NAME} is in")
