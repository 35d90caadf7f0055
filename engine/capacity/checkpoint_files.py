"""Checksums and vocabulary of a checkpoint, with the engine's errors, for the command line. No torch."""

from pathlib import Path

from engine.config import EngineConfig
from engine.errors import EngineConfigError
from model.checkpoint import manifest
from model.checkpoint.checkpoint import read_config
from model.checkpoint.errors import CheckpointError
from model.checkpoint.identity import HASHED_BYTES


def write_manifest(checkpoint: Path) -> tuple[Path, int]:
    """Write the checksums of the files of a checkpoint; return the manifest's path and the number of files.

    Raises EngineConfigError.
    """
    try:
        return manifest.write_manifest(checkpoint)
    except CheckpointError as error:
        raise EngineConfigError(str(error)) from None


def files_newer_than_list(checkpoint: Path) -> tuple[Path, list[Path]] | None:
    """Return the list of checksums, and the files that were written after it and may be others than it lists.

    Small files are compared with the list. None without a list. Raises EngineConfigError.
    """
    try:
        return manifest.doubtful_files(checkpoint, HASHED_BYTES)
    except CheckpointError as error:
        raise EngineConfigError(str(error)) from None


def vocabulary_size(config: EngineConfig) -> int:
    """Return the number of rows of the embedding. Raises EngineConfigError for a bad config."""
    try:
        model, _ = read_config(Path(config.model), rope_theta=config.rope_theta)
    except CheckpointError as error:
        raise EngineConfigError(str(error)) from None
    return model.vocab_size
