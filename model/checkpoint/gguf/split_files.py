"""Read models that are one GGUF file or several, named NAME-00001-of-00003.gguf and so on."""

import re
from pathlib import Path

from model.checkpoint.errors import CheckpointError
from model.checkpoint.gguf.fields import GgufFields
from model.checkpoint.gguf.file import GgufFile, read_file
from model.checkpoint.json_files import printable
from model.checkpoint.stored_tensor import StoredTensor

MAX_PARTS = 999
PART_NAME = re.compile(r"(.+)-(\d{5})-of-(\d{5})(\.gguf)")


def read_model(path: Path) -> GgufFile:
    """Read the headers of a model: `path` is its only file, or the first of its parts.

    The fields are those of the first part, which has the config and the vocabulary. Raises CheckpointError.
    """
    first = read_file(path)
    fields = GgufFields(first)
    num_parts = fields.integer("split.count", 0, MAX_PARTS, default=1)
    if num_parts <= 1:
        return first
    if fields.integer("split.no", 0, MAX_PARTS, default=0) != 0:
        raise fields.error(
            f"this is not the first of {num_parts} parts; pass the one named ...-00001-of-{num_parts:05}"
        )
    tensors = dict(first.tensors)
    for part in part_paths(path, num_parts)[1:]:
        _add_part(tensors, part, num_parts)
    expected = fields.integer("split.tensors.count", 0, 1 << 20, default=len(tensors))
    if expected != len(tensors):
        raise fields.error(f"the {num_parts} parts have {len(tensors)} tensors, but {expected} are listed")
    return GgufFile(path, first.fields, tensors)


def part_paths(path: Path, num_parts: int) -> list[Path]:
    """Return the files of all parts, by the name of the first. Raises CheckpointError for another name."""
    match = PART_NAME.fullmatch(path.name)
    if not match or int(match[3]) != num_parts or int(match[2]) != 1:
        raise CheckpointError(
            f"{path}: the first of {num_parts} parts must be named ...-00001-of-{num_parts:05}.gguf, as published"
        )
    return [path.with_name(f"{match[1]}-{part:05}-of-{match[3]}{match[4]}") for part in range(1, num_parts + 1)]


def files_of(path: Path) -> list[Path]:
    """Return the files of a model by the name of its first file alone, without reading it."""
    match = PART_NAME.fullmatch(path.name)
    return part_paths(path, int(match[3])) if match and int(match[3]) <= MAX_PARTS else [path]


def _add_part(tensors: dict[str, StoredTensor], path: Path, num_parts: int) -> None:
    if not path.exists():
        raise CheckpointError(f"{path} is missing: the model has {num_parts} parts")
    part = read_file(path)
    if GgufFields(part).integer("split.count", 0, MAX_PARTS, default=0) != num_parts:
        raise CheckpointError(f"{path}: not one of {num_parts} parts of this model")
    for name, tensor in part.tensors.items():
        if name in tensors:
            raise CheckpointError(f"tensor {printable(name)} is in {path} and in another part")
        tensors[name] = tensor
