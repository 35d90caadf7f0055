"""Copy what serving reads beside the weights: tokenizer, chat template, sampling defaults. Imports no torch."""

import shutil
from pathlib import Path

from model.checkpoint.gguf.file import write_fields
from model.checkpoint.manifest import SUFFIXES
from model.checkpoint.sentence_embedding import MODULES

VOCABULARY_NAME = "tokenizer.gguf"  # fields of a GGUF file, without its tensors
NOT_COPIED = ("config.json", "params.json", MODULES)  # written anew


def copy_side_files(source: Path, directory: Path) -> None:
    """Copy the files beside the weights of checkpoint `source`; of a GGUF file its fields. Raises OSError."""
    if source.is_file():
        write_fields(source, directory / VOCABULARY_NAME)
        return
    for file in sorted(source.iterdir()):
        if file.is_file() and _is_read(file.name):
            shutil.copyfile(file, directory / file.name)


def _is_read(name: str) -> bool:
    is_weight = name.endswith((".safetensors", ".index.json"))
    return name not in NOT_COPIED and not is_weight and (name.endswith(SUFFIXES) or ".model.v" in name)
