"""Messages between `smoe pack` and the process that packs. No torch."""

import msgspec

from engine.config import EngineConfig


class PackRequest(msgspec.Struct, frozen=True):
    """To the process: pack config.model into the folder `target`."""

    config: EngineConfig
    target: str


class PackReport(msgspec.Struct, frozen=True):
    """From the process: progress, and at the end the result."""

    phase: str  # "checksums", "weights", "writing to the disk"; at the end "done" or "failed"
    done_bytes: int = 0
    total_bytes: int = 0
    warnings: list[str] = []
    error: str = ""  # one line
