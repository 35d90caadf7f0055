"""The state of the engine as health checks and metrics report it."""

from dataclasses import dataclass
from typing import Literal

Phase = Literal["loading", "ready", "stuck", "restarting", "draining", "dead"]


@dataclass(frozen=True)
class EngineStatus:
    """Phase of the engine, and its loading progress. The phase "dead" is final."""

    phase: Phase
    stage: str = ""  # while it loads: "weights", "adapters", "kv cache", "warm-up"
    loaded_bytes: int = 0
    total_bytes: int = 0
    message: str | None = None  # why it is dead: one line for the operator, may contain paths
    exit_code: int = 1  # exit code of the server when the engine is dead
