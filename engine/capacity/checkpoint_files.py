"""Checksums of a checkpoint, with the engine's errors, for the command line. No torch."""

from pathlib import Path

from engine.errors import EngineConfigError
from model.checkpoint import manifest
from model.checkpoint.errors import CheckpointError


def write_manifest(checkpoint: Path) -> tuple[Path, int]:
    """Write the checksums of the files of a checkpoint; return the manifest's path and the number of files.

    Raises EngineConfigError.
    """
    try:
        return manifest.write_manifest(checkpoint)
    except CheckpointError as error:
        raise EngineConfigError(str(error)) from None
