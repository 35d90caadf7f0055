"""A rank of another host, as a process of this one: `engine.host_rank` with the ends of its sockets."""

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from engine.config import EngineConfig
from engine.heartbeat import Heartbeat
from engine.messages import FrameReader, FromEngine, Start, encode_frame
from tests.support.conditions import LIMIT_S
from tests.support.paths import ROOT


@dataclass
class HostRankProcess:
    """The process, and the socket on which it reports."""

    process: subprocess.Popen[bytes]
    connection: socket.socket
    heartbeat: Heartbeat

    def messages(self) -> list[FromEngine]:
        """Wait for its end; return all that it has sent."""
        reader: FrameReader[FromEngine] = FrameReader(FromEngine)
        received: list[FromEngine] = []
        self.connection.settimeout(LIMIT_S)
        while chunk := self.connection.recv(1 << 16):
            received += reader.feed(chunk)
        self.process.wait(LIMIT_S)
        return received


@contextmanager
def host_rank(config: EngineConfig) -> Iterator[HostRankProcess]:
    """Start a rank with its host's settings; kill it at the end of the block."""
    ours, theirs = socket.socketpair()
    heartbeat = Heartbeat()
    with theirs:
        fds = theirs.fileno(), heartbeat.fd
        command = [sys.executable, "-m", "engine.host_rank", *map(str, (*fds, os.getpid()))]
        process = subprocess.Popen(command, pass_fds=fds, cwd=ROOT)
    ours.sendall(encode_frame(Start(config)))
    with ours:
        try:
            yield HostRankProcess(process, ours, heartbeat)
        finally:
            process.kill()
            process.wait()
            heartbeat.close()
