"""Take over the listening socket of the process before this one, or of systemd."""

import asyncio
import contextlib
import os
import socket
from collections.abc import Callable

from server.settings.sources import FIRST_PROCESS_NAME, READY_NAME, inherited_descriptors

LISTENER_NAME = "http"
SYSTEMD_LISTENER_NAME = "http-of-systemd"  # of a socket that the first process got from systemd


class Inheritance:
    """Things handed to this process at its start: maybe a listening socket, maybe a predecessor that waits."""

    def __init__(self) -> None:
        """Take the descriptors out of the environment: once per process."""
        fds = inherited_descriptors()
        self._ready_fd = fds.pop(READY_NAME, None)
        self.has_predecessor = self._ready_fd is not None
        self.first_process_fd = fds.pop(FIRST_PROCESS_NAME, None)  # becomes readable when the first process ends
        self.listener = self._take_listener(list(fds.values()))
        is_systemds = SYSTEMD_LISTENER_NAME in fds if self.has_predecessor else self.listener is not None
        self.listener_name = SYSTEMD_LISTENER_NAME if is_systemds else LISTENER_NAME  # for the next process

    def watch(self, *, on_predecessor_gone: Callable[[], None], on_first_process_gone: Callable[[], None]) -> None:
        """Call back once when the predecessor ends before this process is ready, and when the first process ends."""
        loop = asyncio.get_running_loop()
        for fd, on_gone in ((self._ready_fd, on_predecessor_gone), (self.first_process_fd, on_first_process_gone)):
            if fd is not None:
                loop.add_reader(fd, _call_once, fd, on_gone)  # an error at the pipe's other end counts as readable

    def report_ready(self) -> bool:
        """Tell the predecessor that this process accepts connections; False if it is gone. Does nothing without one."""
        if self._ready_fd is None:
            return True
        fd, self._ready_fd = self._ready_fd, None
        asyncio.get_running_loop().remove_reader(fd)
        try:
            os.write(fd, b"1")
        except BrokenPipeError:
            return False
        finally:
            os.close(fd)
        return True

    def free_port(self, listener: socket.socket) -> None:
        """Refuse connections in every process that has the socket, unless it is systemd's, which starts a server."""
        if self.listener_name != SYSTEMD_LISTENER_NAME:
            with contextlib.suppress(OSError):  # another process has done it
                listener.shutdown(socket.SHUT_RDWR)

    def _take_listener(self, fds: list[int]) -> socket.socket | None:
        """Return the first descriptor that is a listening socket of TCP, or a Unix socket with a path."""
        for fd in fds:
            try:
                candidate = socket.socket(fileno=fd)
            except OSError:
                continue
            if candidate.type == socket.SOCK_STREAM and _has_address(candidate):
                return candidate
            candidate.detach()
        return None


def _has_address(candidate: socket.socket) -> bool:
    """Return True for a socket of TCP, and for a Unix socket with a path."""
    if candidate.family == socket.AF_UNIX:
        name = candidate.getsockname()
        return isinstance(name, str) and name != ""  # an abstract name is bytes
    return candidate.family in (socket.AF_INET, socket.AF_INET6)


def _call_once(fd: int, callback: Callable[[], None]) -> None:
    asyncio.get_running_loop().remove_reader(fd)
    callback()
