"""What a process is started with. It crosses a socket together with copies of its descriptors."""

import os
import socket

import msgspec

MAX_BYTES = 1 << 17
MAX_FDS = 64


class Start(msgspec.Struct):
    """One start, as subprocess.Popen describes it."""

    words: list[str]  # of the command line, without the interpreter
    environment: dict[str, str]
    folder: str
    targets: list[int]  # numbers of the descriptors in the new process
    has_own_session: bool


def connect() -> tuple[socket.socket, socket.socket]:
    """Return the two ends of a connection that keeps messages apart."""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


def send(connection: socket.socket, start: Start, fds: list[int]) -> None:
    """Send a start and the descriptors that become `start.targets`."""
    socket.send_fds(connection, [msgspec.msgpack.encode(start)], fds)


def receive(connection: socket.socket) -> tuple[Start, list[int]] | None:
    """Wait for a start and its descriptors; None when the other end is closed."""
    frame, fds, flags, _ = socket.recv_fds(connection, MAX_BYTES, MAX_FDS)
    if not frame:
        return None
    assert not flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC), "too long"
    for fd in fds:
        os.set_inheritable(fd, False)
    return msgspec.msgpack.decode(frame, type=Start), fds
