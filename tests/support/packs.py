"""Packs made in this process."""

from pathlib import Path
from typing import Any

from engine.config import EngineConfig
from engine.startup.packing import pack


def make_pack(source: Path, target: Path, **settings: Any) -> Path:
    """Pack a checkpoint; return the folder."""
    pack(EngineConfig(model=str(source), **({"threads": 1} | settings)), target, lambda phase, done, total: None)
    return target


def flip_byte(file: Path, position: int) -> None:
    """Change one byte of a file in place."""
    with file.open("r+b") as stream:
        stream.seek(position)
        [value] = stream.read(1)
        stream.seek(position)
        stream.write(bytes([value ^ 1]))
