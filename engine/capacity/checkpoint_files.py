"""A checkpoint's checksums for those who know engines and no checkpoints. Free of torch."""

from pathlib import Path

from engine.errors import EngineConfigError
from model.checkpoint import manifest
from model.checkpoint.errors import CheckpointError


def write_manifest(directory: Path) -> tuple[Path, int]:
    """Where the sums of the files in `directory` now are, and of how many. Raises EngineConfigError."""
    try:
        return manifest.write_manifest(directory)
    except CheckpointError as error:
        raise EngineConfigError(str(error)) from None
