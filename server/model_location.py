"""Resolve a model's name to the directory of its checkpoint. Nothing is ever downloaded."""

import re
from pathlib import Path

import model

DEMO_NAME = "smoe-demo"
REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")


class ModelNotFoundError(Exception):
    """Missing model. The message is one line with the name and the way to get the model."""


def locate_model(name: str | None, hub_cache: Path) -> Path:
    """Return the absolute directory of a checkpoint.

    `name`: None for the demo, a directory, or org/name of a model in `hub_cache`. Raises ModelNotFoundError.
    """
    if name is None:
        return _demo_dir()
    path = Path(name).expanduser()
    if path.is_dir():
        return path.resolve()
    if path.exists():
        raise ModelNotFoundError(f"{name}: this is a file; pass the checkpoint's directory")
    if not REPOSITORY.fullmatch(name):
        raise ModelNotFoundError(f"{name}: no such directory")
    return _cached_snapshot(name, hub_cache)


def model_id(name: str | None) -> str:
    """Return the default model name for clients: of a directory its name, never its path."""
    if name is None:
        return DEMO_NAME
    path = Path(name).expanduser()
    return path.resolve().name if path.is_dir() else name


def _demo_dir() -> Path:
    (package_dir,) = model.__path__
    return Path(package_dir).resolve() / "demo"


def _cached_snapshot(name: str, hub_cache: Path) -> Path:
    """Return the snapshot that refs/main points to, in the layout of `hf download`."""
    folder = hub_cache / f"models--{name.replace('/', '--')}"
    reference = folder / "refs" / "main"
    snapshot = folder / "snapshots" / reference.read_text().strip() if reference.is_file() else None
    if snapshot is None or not snapshot.is_dir():
        raise ModelNotFoundError(f"{name}: not in {hub_cache}; download it with: hf download {name}")
    return snapshot.resolve()
