"""Read a checkpoint's JSON files strictly. Everything that is not plain JSON raises CheckpointError."""

import json
import math
from pathlib import Path
from typing import Any, NoReturn

from model.checkpoint.errors import CheckpointError

LFS_POINTER = b"version https://git-lfs"


def read_json_object(path: Path, max_bytes: int) -> dict[str, Any]:
    """Return the object in a UTF-8 file of at most `max_bytes`.

    Raises CheckpointError for other files, and for NaN, infinities, duplicate keys and byte order marks.
    """
    value = _read_json(path, max_bytes)
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} contains {printable(value)}, not a JSON object")
    return value


def read_json_objects(path: Path, max_bytes: int) -> list[dict[str, Any]]:
    """Return the objects in a file that contains an array of them, as strictly. Raises CheckpointError."""
    value = _read_json(path, max_bytes)
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise CheckpointError(f"{path} contains {printable(value)}, not a JSON array of objects")
    return value


def _read_json(path: Path, max_bytes: int) -> Any:
    content = _read(path, max_bytes)
    if content.startswith(LFS_POINTER):
        raise CheckpointError(f"{path} is a git-lfs pointer, not the file itself; fetch it with: git lfs pull")
    if content.lstrip()[:1] == b"<":
        raise CheckpointError(f"{path} is an HTML or XML page, not JSON; the download went wrong")
    try:
        return json.loads(
            content.decode(),
            parse_constant=_refuse_constant,
            parse_float=_finite,
            object_pairs_hook=_distinct_keys,
        )
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError and JSONDecodeError are ValueErrors
        reason = "nested too deeply" if isinstance(error, RecursionError) else one_line(error)
        raise CheckpointError(f"{path} is not valid JSON: {reason}") from None


def _read(path: Path, max_bytes: int) -> bytes:
    try:
        if not path.is_file():
            raise CheckpointError(f"{path} is missing" if not path.exists() else f"{path} is not a file")
        size = path.stat().st_size
        if size > max_bytes:
            raise CheckpointError(f"{path} has {size} bytes, more than the limit of {max_bytes}")
        content = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from None
    if not content.strip():
        raise CheckpointError(f"{path} is empty")
    return content


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")


def _finite(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise ValueError(f"{digits[:20]} is out of range")
    return value


def _distinct_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    keys: dict[str, Any] = {}
    for key, value in pairs:
        if key in keys:
            raise ValueError(f"the key {printable(key)} occurs twice")
        keys[key] = value
    return keys


def printable(value: object) -> str:
    """Return a value from a file in a form fit for one-line messages: printable ASCII, at most 60 characters."""
    text = ascii(value)
    return text if len(text) <= 60 else text[:57] + "..."


def one_line(error: Exception) -> str:
    """Return an exception's text without line breaks, at most 200 characters."""
    return " ".join(str(error).split())[:200]
