"""Take a SIGHUP that comes while the server still imports its modules; without a handler it would end the process."""

import os
import signal
from collections.abc import Callable
from functools import cache
from typing import Any

from server.lifecycle.restart.terminal import ControllingTerminal


class EarlyHangup:
    """The signal's handler until the event loop has one. A new program, such as the engine, starts without it."""

    def __init__(self) -> None:
        """Install the handler, unless SIGHUP is ignored, as under nohup."""
        self._terminal = ControllingTerminal()
        self._has_come = False
        if signal.getsignal(signal.SIGHUP) is signal.SIG_DFL:
            signal.signal(signal.SIGHUP, self._note)

    def pass_on(self, handler: Callable[[], None]) -> None:
        """Call the event loop's handler, which is installed now, if the signal has come before."""
        if self._has_come:
            handler()

    def _note(self, *_: Any) -> None:
        if self._terminal.is_gone():
            signal.signal(signal.SIGHUP, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGHUP)
        self._has_come = True


@cache
def note_hangups() -> EarlyHangup:
    """Return the handler of this process, which the first call installs."""
    return EarlyHangup()
