"""Tell a SIGHUP that a closed terminal has caused from one that somebody has sent."""

import errno
import os


class ControllingTerminal:
    """The terminal that the process was started from, if any."""

    def __init__(self) -> None:
        self._existed = _exists()

    def is_gone(self) -> bool:
        """Return True if there was a terminal and it was closed since."""
        return self._existed and not _exists()


def _exists() -> bool:
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY))
    except OSError as error:
        return error.errno in (errno.EMFILE, errno.ENFILE)  # there are no free descriptors
    return True
