"""Deterministic asyncio event loop with virtual time: when nothing is ready, time jumps to the next timer."""

import asyncio
from typing import Any

START_S = 1000.0


class StalledError(AssertionError):
    """Nothing is ready and no timer is set: whoever waits will wait for ever."""


class VirtualLoop(asyncio.BaseEventLoop):
    """Event loop without files and sockets. A subclass provides what the program under test opens."""

    def __init__(self) -> None:
        super().__init__()
        self._now_s = START_S
        self._selector = self  # the base class calls select() and then _process_events()

    def time(self) -> float:
        """Return the virtual time, which no clock of the machine influences."""
        return self._now_s

    def select(self, timeout_s: float | None) -> list[Any]:
        """Advance the time by the wait. Raises StalledError if the wait has no end."""
        if timeout_s is None:
            raise StalledError("nothing will ever happen again")
        self._now_s += timeout_s
        return []

    def _process_events(self, event_list: list[Any]) -> None:
        """Do nothing: no file is ever watched."""
