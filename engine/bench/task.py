"""Task of `python -m engine.bench`. No torch."""

from typing import Literal

import msgspec

from engine.config import EngineConfig

Preset = Literal["mixtral-8x7b", "bench-400m", "tiny"]


class Task(msgspec.Struct, frozen=True, kw_only=True):
    """One measurement. An engine config without a model gets random weights of the preset's shape."""

    kind: Literal["kernels", "engine"]
    engine: EngineConfig
    preset: Preset
    rows: list[int]  # rows of the kernels, batch sizes of decode steps
    contexts: list[int]  # context lengths of attention and decode steps
    prefills: list[int] = []  # prompt lengths
