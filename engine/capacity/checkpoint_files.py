"""Checksums of a checkpoint, with the engine's errors, for the command line. No torch."""

from pathlib import Path

from engine.errors import EngineConfigError
from model.checkpoint import manifest
from model.checkpoint.errors import CheckpointError


def write_manifest(directory: Path) -> tuple[Path, int]:
    """Write the checksums of the files in `directory`; return the manifest's path and the number of files.

    Raises EngineConfigError.
    """
    try:
        return manifest.write_manifest(directory)
    except CheckpointError as error:
        raise EngineConfigError(str(error)) from None
