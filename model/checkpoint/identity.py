"""Identify the files that were loaded, without reading their weights. Imports no torch."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from model.checkpoint.errors import CheckpointError
from model.checkpoint.manifest import listed_sums
from model.checkpoint.quantized.scheme import SIDE_FILES
from model.checkpoint.stored_tensor import StoredWeight, tensors_of

NETWORK_CONFIG_NAMES = ("config.json", "params.json", *SIDE_FILES)
CONFIG_NAMES = (*NETWORK_CONFIG_NAMES, "generation_config.json")
WITH_CONFIGS = (".safetensors", ".smoe")  # a GGUF file contains its config
SAMPLE_BYTES = 4096  # for a digest that hosts compare


@dataclass(frozen=True)
class CheckpointIdentity:
    """Two SHA-256 digests in hex."""

    files: str  # of headers, sizes, inodes and times: another one after a file was replaced or written
    contents: str  # of the sums in the manifest, equal for equal contents anywhere; without such a list as `files`


def identify(weights: Iterable[StoredWeight]) -> CheckpointIdentity:
    """Return the identity of the files that hold these weights, and of the configs beside them.

    Costs a system call per file. Raises CheckpointError if one is gone.
    """
    stored = sorted(tensors_of(weights), key=lambda tensor: (tensor.name, tensor.start))
    files = sorted({tensor.file for tensor in stored})
    if files and files[0].suffix in WITH_CONFIGS:
        files += [path for name in CONFIG_NAMES if (path := files[0].with_name(name)).is_file()]
    lines = [f"{t.name} {t.file.name} {t.dtype} {t.shape} {t.start} {t.num_bytes}" for t in stored]
    digest = _digest([*lines, *map(_stat_line, files)])
    return CheckpointIdentity(digest, _digest_of_sums(files) or digest)


def _stat_line(file: Path) -> str:
    try:
        stat = file.stat()
    except OSError as error:
        raise CheckpointError(f"{file} cannot be read: {error.strerror}") from None
    return f"{file.name} {stat.st_ino} {stat.st_size} {stat.st_mtime_ns}"


def _digest_of_sums(files: list[Path]) -> str:
    """Return the digest of the files' listed sums; empty unless every file is listed."""
    sums = listed_sums(files[0].parent) | listed_sums(files[0]) if files else {}
    if not all(file.name in sums for file in files):
        return ""
    return _digest([f"{sums[file.name]} {file.name}" for file in files])


def _digest(lines: list[str]) -> str:
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def contents_digest(weights: Iterable[StoredWeight]) -> str:
    """Return a digest that is equal on all hosts with the same checkpoint: of the config, and of the name, type, shape
    and first bytes of each tensor.

    Reads 4 KiB of each tensor. Raises CheckpointError.
    """
    stored = sorted(tensors_of(weights), key=lambda tensor: (tensor.name, tensor.start))
    lines = [f"{t.name} {t.dtype} {t.shape} {_sample(t.file, t.start, t.num_bytes)}" for t in stored]
    if stored and stored[0].file.suffix == ".safetensors":  # a GGUF file contains its config
        configs = [stored[0].file.with_name(name) for name in NETWORK_CONFIG_NAMES]
        lines += [f"{path.name} {_sample(path, 0, path.stat().st_size)}" for path in configs if path.is_file()]
    return _digest(lines)


def _sample(file: Path, start: int, num_bytes: int) -> str:
    """Return a digest of the beginning of a part of a file."""
    try:
        with file.open("rb") as opened:
            opened.seek(start)
            return hashlib.sha256(opened.read(min(num_bytes, SAMPLE_BYTES))).hexdigest()
    except OSError as error:
        raise CheckpointError(f"{file} cannot be read: {error.strerror}") from None
