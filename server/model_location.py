"""From what the user calls a model to the directory that holds it. Nothing is ever downloaded."""

import re
from pathlib import Path

import model

DEMO_NAME = "smoe-demo"
REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")


class ModelNotFoundError(Exception):
    """One line that says what was looked for and how to get it."""


def locate_model(name: str | None, hub_cache: Path) -> Path:
    """The absolute directory of a checkpoint: None is the bundled demo, else a directory or org/name in `hub_cache`."""
    if name is None:
        return _demo_dir()
    path = Path(name).expanduser()
    if path.is_dir():
        return path.resolve()
    if path.exists():
        raise ModelNotFoundError(f"{name}: this is a file; give the directory of the checkpoint")
    if not REPOSITORY.fullmatch(name):
        raise ModelNotFoundError(f"{name}: there is no such directory")
    return _cached_snapshot(name, hub_cache)


def model_id(name: str | None) -> str:
    """What clients call the model by default: a directory's own name, never its path."""
    if name is None:
        return DEMO_NAME
    path = Path(name).expanduser()
    return path.resolve().name if path.is_dir() else name


def _demo_dir() -> Path:
    (package_dir,) = model.__path__
    return Path(package_dir).resolve() / "demo"


def _cached_snapshot(name: str, hub_cache: Path) -> Path:
    """What refs/main points to, as `hf download` leaves it."""
    folder = hub_cache / f"models--{name.replace('/', '--')}"
    reference = folder / "refs" / "main"
    snapshot = folder / "snapshots" / reference.read_text().strip() if reference.is_file() else None
    if snapshot is None or not snapshot.is_dir():
        raise ModelNotFoundError(f"{name}: not in {hub_cache}; download it with: hf download {name}")
    return snapshot.resolve()
