"""Read and check the headers of a checkpoint's safetensors files: names, dtypes, shapes and positions of all tensors.

Reads no weights, never opens pickled files, and imports no torch.
"""

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from model.checkpoint.errors import CheckpointError
from model.checkpoint.json_files import LFS_POINTER, one_line, printable, read_json_object
from model.checkpoint.stored_tensor import StoredTensor

SINGLE_NAME = "model.safetensors"
MAX_INDEX_BYTES = 1 << 28
LENGTH_BYTES = 8  # a file begins with its header's length, little-endian
PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


def read_headers(directory: Path, single_name: str = SINGLE_NAME) -> dict[str, StoredTensor]:
    """Return all tensors of the checkpoint by name: those of the file `single_name`, or of the files in its index.

    As in transformers, the file comes before an index: where it is saved into a folder of parts, their index stays.

    Raises CheckpointError for missing, damaged or foreign files, and for tensors that are in two files or not in the
    file that the index names.
    """
    index_name = f"{single_name}.index.json"
    index = {} if _exists(directory / single_name) else _read_index(directory / index_name)
    tensors: dict[str, StoredTensor] = {}
    for file in _files(directory, index, single_name):
        for tensor in _read_header(file):
            if tensor.name in tensors:
                raise CheckpointError(f"tensor {tensor.name} is in {tensors[tensor.name].file} and again in {file}")
            tensors[tensor.name] = tensor
    for name, file_name in index.items():
        if name not in tensors or tensors[name].file.name != file_name:
            raise CheckpointError(
                f"{directory / index_name} lists tensor {name} in {file_name}, which does not contain it"
            )
    return tensors


def _read_index(path: Path) -> dict[str, str]:
    """Return the index's map from tensor to file name; empty if there is no index."""
    if not _exists(path):
        return {}
    weight_map = read_json_object(path, MAX_INDEX_BYTES).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{path} has no weight_map")
    for name in weight_map.values():
        if not isinstance(name, str) or Path(name).name != name or not name.endswith(".safetensors"):
            raise CheckpointError(f"{path}: {printable(name)} is not the name of a safetensors file")
    return weight_map


def _files(directory: Path, index: dict[str, str], single_name: str) -> list[Path]:
    """Return the weight files; raise CheckpointError if one is missing."""
    files = [directory / name for name in dict.fromkeys(index.values())] or [directory / single_name]
    for file in files:
        if not _exists(file):
            raise CheckpointError(f"{file} is missing{_hint(directory, index, single_name)}")
        if not file.is_file():
            raise CheckpointError(f"{file} is not a file")
    return files


def _exists(path: Path) -> bool:
    """Return whether the file exists. Raises CheckpointError if the system does not tell, as of a link into a folder of
    another user."""
    try:
        return path.exists()
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from None


def _hint(directory: Path, index: dict[str, str], single_name: str) -> str:
    """Return the end of the message: why a directory without the expected file may look complete."""
    index_name = f"{single_name}.index.json"
    if index:
        return f", though {index_name} names it"
    try:
        names = sorted(entry.name for entry in directory.iterdir())
    except OSError as error:
        return f" in a directory that cannot be listed: {error.strerror}"
    pickles = [name for name in names if name.endswith(PICKLE_SUFFIXES)]
    if pickles:
        return f"; {printable(pickles[0])} holds pickled weights, which are never loaded: convert it to safetensors"
    arrays = [name for name in names if name.endswith(".npz")]
    if arrays:
        return (
            f"; {printable(arrays[0])} holds NumPy arrays, MLX's layout of 2023: use a version with safetensors files"
        )
    others = [name for name in names if name.endswith(".safetensors")]
    return f"; there is {printable(others[0])}, but no {index_name}" if others else f", and so is {index_name}"


def _read_header(file: Path) -> list[StoredTensor]:
    """Return the tensors of one file. The safetensors library checks the header and the length of the file."""
    try:
        _check_first_bytes(file)
        with safe_open(file, framework="numpy"):
            pass
        with file.open("rb") as stream:
            header_bytes = int.from_bytes(stream.read(LENGTH_BYTES), "little")
            header = json.loads(stream.read(header_bytes))
    except SafetensorError as error:
        raise CheckpointError(f"{file} is damaged or not a safetensors file: {one_line(error)}") from None
    except OSError as error:
        raise CheckpointError(f"{file} cannot be read: {error.strerror or one_line(error)}") from None
    header.pop("__metadata__", None)
    return [_stored(file, name, entry, LENGTH_BYTES + header_bytes) for name, entry in header.items()]


def _stored(file: Path, name: str, entry: dict[str, Any], data_start: int) -> StoredTensor:
    start, end = entry["data_offsets"]
    return StoredTensor(file, name, entry["dtype"], tuple(entry["shape"]), data_start + start, end - start)


def _check_first_bytes(file: Path) -> None:
    """Raise CheckpointError for contents that often replace a weight file by mistake."""
    with file.open("rb") as stream:
        start = stream.read(64)
    found = None
    if not start:
        found = "empty"
    elif start.startswith(LFS_POINTER):
        found = "a git-lfs pointer, not the weights; fetch them with: git lfs pull"
    elif start.lstrip()[:1] == b"<":
        found = "an HTML or XML page; the download went wrong"
    elif start.startswith((b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")) and start[8:9] != b"{":
        found = "a pickled torch file, which is never loaded: convert it to safetensors"
    if found:
        raise CheckpointError(f"{file} is {found}")
