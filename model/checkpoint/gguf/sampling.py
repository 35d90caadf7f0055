"""Read the sampling fields that a GGUF file recommends."""

from pathlib import Path

from model.checkpoint.gguf.fields import GgufFields
from model.checkpoint.gguf.split_files import read_model

PREFIX = "general.sampling."
# Names in generation_config.json -> names in GGUF files, as in the package gguf.
NAMES = {
    "temperature": "temp",
    "top_p": "top_p",
    "top_k": "top_k",
    "min_p": "min_p",
    "repetition_penalty": "penalty_repeat",
}


def read_gguf_sampling(path: Path) -> dict[str, object]:
    """Return the unchecked values in the file, under their names in generation_config.json. Raises CheckpointError.

    Numbers are stored in float32, of which 6 digits count: 0.7 is 0.699999988.
    """
    fields = GgufFields(read_model(path), PREFIX)
    return {name: _rounded(fields.get(stored)) for name, stored in NAMES.items() if stored in fields}


def _rounded(value: object) -> object:
    return float(f"{value:.6g}") if isinstance(value, float) else value
