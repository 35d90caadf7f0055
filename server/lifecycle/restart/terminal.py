"""Tell the signals that a terminal causes from those that somebody sends."""

import os


class ControllingTerminal:
    """The terminal that the process was started from, if any."""

    def __init__(self) -> None:
        self._existed = _foreground_group() is not None

    def is_gone(self) -> bool:
        """Return True if there was a terminal and it was closed since."""
        return self._existed and _foreground_group() is None

    def sends_interrupts(self) -> bool:
        """Return True if Ctrl-C sends SIGINT to this process, and to all others of its process group."""
        return _foreground_group() == os.getpgrp()


def _foreground_group() -> int | None:
    """Return the process group that the terminal sends its signals to; None without a terminal."""
    try:
        terminal = os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY)
    except OSError:
        return None
    try:
        return os.tcgetpgrp(terminal)
    except OSError:
        return 0
    finally:
        os.close(terminal)
