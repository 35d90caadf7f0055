"""Watch how much of a pack's weights is in memory."""

import asyncio
from collections.abc import Callable
from pathlib import Path

from engine.capacity.packs import cached_weight_bytes

INTERVAL_S = 10.0


class CachedWeightsProbe:
    """Reports every 10 seconds how many bytes of a pack's file are in memory."""

    def __init__(self, model: Path, report: Callable[[int], None]) -> None:
        self._model = model
        self._report = report

    async def run(self) -> None:
        """Report until cancelled; return at once if the model is not a pack, or the system cannot tell."""
        while (num_bytes := await asyncio.to_thread(cached_weight_bytes, self._model)) is not None:
            self._report(num_bytes)
            await asyncio.sleep(INTERVAL_S)
