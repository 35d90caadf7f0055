"""Copy what serving reads beside the weights: tokenizer, chat template, sampling defaults. Imports no torch."""

from pathlib import Path

from model.checkpoint.errors import CheckpointError
from model.checkpoint.gguf.file import write_fields
from model.checkpoint.manifest import SUFFIXES
from model.checkpoint.sentence_embedding import MODULES

VOCABULARY_NAME = "tokenizer.gguf"  # fields of a GGUF file, without its tensors
NOT_COPIED = ("config.json", "params.json", MODULES)  # written anew


def copy_side_files(source: Path, directory: Path) -> None:
    """Copy the files beside the weights of checkpoint `source`; of a GGUF file its fields.

    Raises CheckpointError for a file that cannot be read, and OSError for one that cannot be written.
    """
    if source.is_file():
        write_fields(source, directory / VOCABULARY_NAME)
        return
    for file in _side_files(source):
        try:
            content = file.read_bytes()
        except OSError as error:
            raise CheckpointError(f"{file} cannot be read: {error.strerror}") from None
        (directory / file.name).write_bytes(content)


def _side_files(source: Path) -> list[Path]:
    try:
        return sorted(file for file in source.iterdir() if file.is_file() and _is_read(file.name))
    except OSError as error:
        raise CheckpointError(f"{source} cannot be read: {error.strerror}") from None


def _is_read(name: str) -> bool:
    is_weight = name.endswith((".safetensors", ".index.json"))
    return name not in NOT_COPIED and not is_weight and (name.endswith(SUFFIXES) or ".model.v" in name)
