"""Write and verify the checksums of a checkpoint's files in the format of `sha256sum -c`. Imports no torch.

safetensors and GGUF files have no checksum: a bit that flipped during a download would go unnoticed. The sums are in
SHA256SUMS in the checkpoint's directory, or beside a GGUF file in FILE.gguf.sha256.
"""

import hashlib
import os
import re
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue

from model.checkpoint.errors import CheckpointError
from model.checkpoint.gguf.split_files import files_of
from model.checkpoint.json_files import printable

MANIFEST_NAME = "SHA256SUMS"
MAX_MANIFEST_BYTES = 1 << 20
READ_BYTES = 1 << 20
REPORT_BYTES = 64 << 20  # a file of some GB on a slow disk takes longer than an engine may be silent
NUM_THREADS = 4  # hashing releases the interpreter's lock, so one thread reads while another hashes
SUFFIXES = (".safetensors", ".json", ".jinja", ".model")
_LINE = re.compile(r"([0-9a-fA-F]{64}) [ *](?:\./)?(.+)")


@dataclass(frozen=True)
class ListedSum:
    """Sum of a file in a manifest."""

    digest: str  # SHA-256 in hex
    manifest: Path
    written_ns: int  # modification time of the manifest


def manifest_path(checkpoint: Path) -> Path:
    """Return the file with the sums of a checkpoint: a directory, or the first GGUF file of a model."""
    is_directory = checkpoint.is_dir()
    return checkpoint / MANIFEST_NAME if is_directory else checkpoint.with_name(f"{checkpoint.name}.sha256")


def write_manifest(checkpoint: Path) -> tuple[Path, int]:
    """Write the sums of all files that serving may read; return the manifest's path and their number.

    Raises CheckpointError.
    """
    sums = dict(_sums(_files(checkpoint), lambda done, total: None))
    path = manifest_path(checkpoint)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        unfinished.write_text("".join(f"{sums[file]}  {file.name}\n" for file in sorted(sums)), encoding="utf-8")
        unfinished.replace(path)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be written: {error.strerror}") from None
    return path, len(sums)


def verify_manifest(checkpoint: Path, on_progress: Callable[[int, int], None]) -> None:
    """Check all files that serving may read: raise CheckpointError if one is not listed, missing or has another sum.

    Reads each file once and calls on_progress(bytes checked, total bytes) after each part of 64 MiB and each file.
    """
    path = manifest_path(checkpoint)
    listed = _read_manifest(path, checkpoint)
    files = _files(checkpoint)
    for file in files:
        if file.name not in listed:
            raise CheckpointError(f"{file} is not listed in {path.name}{_advice(checkpoint)}")
    names = {file.name for file in files}
    missing = [name for name in listed if name.endswith(SUFFIXES) and "/" not in name and name not in names]
    if missing:
        raise CheckpointError(f"{path.parent}: {printable(missing[0])} is missing, though {path.name} lists it")
    for file, digest in _sums(files, on_progress):
        if digest != listed[file.name]:
            raise CheckpointError(f"{file} is damaged: its SHA-256 sum differs from the one in {path.name}")


def listed_sums(checkpoint: Path) -> dict[str, ListedSum]:
    """Return the sums that the manifest lists by file name, unchecked; empty without a manifest that can be read."""
    path = manifest_path(checkpoint)
    try:
        listed, written_ns = _read_manifest(path, checkpoint), path.stat().st_mtime_ns
    except (CheckpointError, OSError):
        return {}
    return {name: ListedSum(digest, path, written_ns) for name, digest in listed.items()}


def files_to_doubt(listed: dict[Path, ListedSum], max_bytes: int) -> list[Path]:
    """Return the files that were written after their sums and may therefore be others than those that were listed.

    If they have at most `max_bytes` together they are read, and those with their sums are not returned. Raises
    CheckpointError.
    """
    try:
        stats = {file: file.stat() for file in listed}
    except OSError as error:
        raise CheckpointError(f"{error.filename} cannot be read: {error.strerror}") from None
    newer = [file for file, entry in listed.items() if stats[file].st_mtime_ns > entry.written_ns]
    if sum(stats[file].st_size for file in newer) > max_bytes:
        return newer
    return [file for file in newer if _sum(file, lambda num_bytes: None) != listed[file].digest]


def doubtful_files(checkpoint: Path, max_bytes: int) -> tuple[Path, list[Path]] | None:
    """Return the manifest of a checkpoint, and which of its files are to be doubted, see files_to_doubt().

    None without a manifest that can be read. Raises CheckpointError.
    """
    sums = listed_sums(checkpoint)
    if not sums:
        return None
    listed = {file: sums[file.name] for file in _files(checkpoint) if file.name in sums}
    return manifest_path(checkpoint), files_to_doubt(listed, max_bytes)


def _files(checkpoint: Path) -> list[Path]:
    """Return the files that serving may read, by name."""
    try:
        if not checkpoint.is_dir():
            return files_of(checkpoint)
        found = [file for file in checkpoint.iterdir() if file.is_file()]
    except OSError as error:
        raise CheckpointError(f"{checkpoint} cannot be read: {error.strerror}") from None
    return sorted(file for file in found if file.name.endswith(SUFFIXES) or ".model.v" in file.name)


def _sums(files: list[Path], on_progress: Callable[[int, int], None]) -> Iterator[tuple[Path, str]]:
    """Yield each file with its sum, in order of completion."""
    try:
        total = sum(file.stat().st_size for file in files)
    except OSError as error:
        raise CheckpointError(f"{error.filename} cannot be read: {error.strerror}") from None
    done = 0
    events: SimpleQueue[int | Future[str]] = SimpleQueue()  # bytes that were read, and files that are complete
    with ThreadPoolExecutor(NUM_THREADS, thread_name_prefix="sha256") as threads:
        running = {threads.submit(_sum, file, events.put): file for file in files}
        for future in running:
            future.add_done_callback(events.put)
        try:
            for _ in running:
                while isinstance(event := events.get(), int):
                    done += event
                    on_progress(done, total)
                yield running[event], event.result()
        finally:
            threads.shutdown(cancel_futures=True)


def _sum(file: Path, on_read: Callable[[int], None]) -> str:
    """Return the file's sum. `on_read` gets the number of bytes after each REPORT_BYTES and at the end."""
    digest, buffer, num_unreported = hashlib.sha256(), bytearray(READ_BYTES), 0
    try:
        with file.open("rb", buffering=0) as stream:
            while num_bytes := stream.readinto(buffer):
                digest.update(memoryview(buffer)[:num_bytes])
                num_unreported += num_bytes
                if num_unreported >= REPORT_BYTES:
                    on_read(num_unreported)
                    num_unreported = 0
        on_read(num_unreported)
        return digest.hexdigest()
    except OSError as error:
        raise CheckpointError(f"{file} cannot be read: {error.strerror}") from None


def _read_manifest(path: Path, checkpoint: Path) -> dict[str, str]:
    try:
        with path.open("rb") as stream:
            content = stream.read(MAX_MANIFEST_BYTES + 1)
    except FileNotFoundError:
        raise CheckpointError(f"--verify: {path} is missing{_advice(checkpoint)}") from None
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from None
    lines = [line for line in content.decode("utf-8", errors="replace").splitlines() if line[:1] not in ("", "#")]
    matches = [_LINE.fullmatch(line) for line in lines]
    if not lines or not all(matches) or len(content) > MAX_MANIFEST_BYTES:
        raise CheckpointError(f"{path} is not a list of SHA-256 sums{_advice(checkpoint)}")
    return {match[2]: match[1].lower() for match in matches if match}


def _advice(checkpoint: Path) -> str:
    return f"; if the files are known to be good, write it with: smoe plan {checkpoint} --write-manifest"
