"""Identify the files that were loaded, reading 64 MiB of them at most. Imports no torch."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from model.checkpoint.errors import CheckpointError
from model.checkpoint.manifest import MANIFEST_NAME, ListedSum, files_to_doubt, listed_sums
from model.checkpoint.quantized.scheme import SIDE_FILES
from model.checkpoint.stored_tensor import StoredTensor, StoredWeight, tensors_of

NETWORK_CONFIG_NAMES = ("config.json", "params.json", *SIDE_FILES)
CONFIG_NAMES = (*NETWORK_CONFIG_NAMES, "generation_config.json")
WITH_CONFIGS = (".safetensors", ".smoe")  # a GGUF file contains its config
SAMPLE_BYTES = 4096  # for a digest that hosts compare
HASHED_BYTES = 64 << 20  # 0.2 s at most: the files of a small model, or the configs of a large one


@dataclass(frozen=True)
class CheckpointIdentity:
    """Two SHA-256 digests in hex."""

    files: str  # of headers, sizes, inodes and times: another one after a file was replaced or written
    contents: str  # of the sums in the manifest, equal for equal contents anywhere; without such a list as `files`
    warnings: tuple[str, ...] = ()  # why the manifest's sums are not believed


def identify(weights: Iterable[StoredWeight], *, is_verified: bool = False) -> CheckpointIdentity:
    """Return the identity of the files that hold these weights, and of the configs beside them.

    Files that were written after their manifest are hashed if they are small. Large ones are not: then the manifest's
    sums are believed only if `is_verified`, and a warning says so. Costs a system call per file otherwise. Raises
    CheckpointError if one is gone.
    """
    stored = list(tensors_of(weights))
    files, digest = _files_of(stored), files_digest(stored)
    listed = _listed(files)
    if not listed:
        return CheckpointIdentity(digest, digest)
    if not is_verified and (doubtful := files_to_doubt(listed, HASHED_BYTES)):
        return CheckpointIdentity(digest, digest, (_doubt(doubtful, listed[doubtful[0]].manifest),))
    return CheckpointIdentity(digest, _digest([f"{entry.digest} {file.name}" for file, entry in listed.items()]))


def files_digest(weights: Iterable[StoredWeight]) -> str:
    """Return the digest `files` of an identity: compare two to see that no file was replaced meanwhile.

    Costs a system call per file. Raises CheckpointError if one is gone.
    """
    stored = sorted(tensors_of(weights), key=lambda tensor: (tensor.name, tensor.start))
    lines = [f"{t.name} {t.file.name} {t.dtype} {t.shape} {t.start} {t.num_bytes}" for t in stored]
    return _digest([*lines, *map(_stat_line, _files_of(stored))])


def _files_of(stored: Iterable[StoredTensor]) -> list[Path]:
    files = sorted({tensor.file for tensor in stored})
    if files and files[0].suffix in WITH_CONFIGS:
        files += [path for name in CONFIG_NAMES if (path := files[0].with_name(name)).is_file()]
    return files


def _stat_line(file: Path) -> str:
    try:
        stat = file.stat()
    except OSError as error:
        raise CheckpointError(f"{file} cannot be read: {error.strerror}") from None
    return f"{file.name} {stat.st_ino} {stat.st_size} {stat.st_mtime_ns}"


def _listed(files: list[Path]) -> dict[Path, ListedSum]:
    """Return what the manifests say about these files; empty unless every file is listed."""
    sums = listed_sums(files[0].parent) | listed_sums(files[0]) if files else {}
    return {file: sums[file.name] for file in files} if all(file.name in sums for file in files) else {}


def _doubt(files: list[Path], manifest: Path) -> str:
    others = f" and {len(files) - 1} more" if len(files) > 1 else ""
    checkpoint = manifest.parent if manifest.name == MANIFEST_NAME else manifest.with_suffix("")
    return (
        f"{files[0]}{others}: written after {manifest.name}, whose sums are therefore not believed; system_fingerprint "
        "names these files instead of their contents. Check them with --verify, or list them again with: smoe plan "
        f"{checkpoint} --write-manifest"
    )


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
