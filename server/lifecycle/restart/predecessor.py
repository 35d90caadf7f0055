"""Take over the listening socket of the process before this one, or of systemd."""

import contextlib
import os
import socket

from server.settings.sources import FIRST_PROCESS_NAME, READY_NAME, inherited_descriptors


class Inheritance:
    """Things handed to this process at its start: maybe a listening socket, maybe a predecessor that waits."""

    def __init__(self) -> None:
        """Take the descriptors out of the environment: once per process."""
        fds = inherited_descriptors()
        self._ready_fd = fds.pop(READY_NAME, None)
        self.has_predecessor = self._ready_fd is not None
        self.first_process_fd = fds.pop(FIRST_PROCESS_NAME, None)  # becomes readable when the first process ends
        self.listener = self._take_listener(list(fds.values()))

    def report_ready(self) -> bool:
        """Tell the predecessor that this process accepts connections; False if it is gone. Does nothing without one."""
        if self._ready_fd is None:
            return True
        fd, self._ready_fd = self._ready_fd, None
        try:
            os.write(fd, b"1")
        except BrokenPipeError:
            return False
        finally:
            os.close(fd)
        return True

    def _take_listener(self, fds: list[int]) -> socket.socket | None:
        """Return the first descriptor that is a listening socket of TCP."""
        for fd in fds:
            try:
                candidate = socket.socket(fileno=fd)
            except OSError:
                continue
            if candidate.family in (socket.AF_INET, socket.AF_INET6) and candidate.type == socket.SOCK_STREAM:
                return candidate
            candidate.detach()
        return None


def free_port(listener: socket.socket) -> None:
    """Refuse connections in every process that has the socket."""
    with contextlib.suppress(OSError):  # another process has done it
        listener.shutdown(socket.SHUT_RDWR)
