"""HTTP over a Unix socket, with the standard library's client."""

import http.client
import socket


class UnixConnection(http.client.HTTPConnection):
    """Connection to the server that listens at a path."""

    def __init__(self, path: str, timeout: float) -> None:
        """`timeout`: of each read and write, in seconds."""
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        """Raises OSError, also for a path that is too long."""
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)
