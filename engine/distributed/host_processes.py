"""Processes of the other ranks on the same host, where ranks share no memory: on several hosts, or with GPUs."""

import contextlib
import os
import socket
import subprocess
import sys
from pathlib import Path

import msgspec

import engine
from engine.config import EngineConfig
from engine.errors import EngineConfigError
from engine.heartbeat import Heartbeat
from engine.messages import Start, encode_frame

NOT_STARTED = "the system cannot start the process of a rank"
HOST_RANK_COMMAND = (sys.executable, "-m", "engine.host_rank")


class HostProcesses:
    """Ranks of this host but its first. The kernel ends them with this process; they end themselves with the group."""

    def __init__(self, config: EngineConfig) -> None:
        """Start them, unless this process is one of them. Raises EngineConfigError if the system cannot."""
        self._processes: list[subprocess.Popen[bytes]] = []
        self._sockets: list[socket.socket] = []
        if config.local_rank != 0:
            return
        try:
            for local_rank in range(1, config.ranks_per_host):
                self._start(msgspec.structs.replace(config, local_rank=local_rank))
        except OSError as error:
            self.close()
            size = config.tensor_parallel_size
            raise EngineConfigError(f"--tensor-parallel-size {size}: {NOT_STARTED}: {error.strerror}") from None

    @property
    def pids(self) -> list[int]:
        return [process.pid for process in self._processes]

    def find_ended(self) -> dict[int, str]:
        """Return how processes have ended, in words, by rank on this host."""
        codes = {rank: process.poll() for rank, process in enumerate(self._processes, 1)}
        return {
            rank: f"rank {rank} was killed by signal {-code}" if code < 0 else f"rank {rank} exited with {code}"
            for rank, code in codes.items()
            if code is not None
        }

    def close(self) -> None:
        """End the processes and wait for that. Idempotent."""
        for process in self._processes:
            process.kill()
            process.wait()
        for connection in self._sockets:
            connection.close()

    def _start(self, config: EngineConfig) -> None:
        ours, theirs = socket.socketpair()
        self._sockets.append(ours)
        heartbeat = Heartbeat()  # nobody reads it: rank 0 watches the connection
        (package_folder,) = engine.__path__
        with theirs, contextlib.closing(heartbeat):
            fds = theirs.fileno(), heartbeat.fd
            process = subprocess.Popen(
                [*HOST_RANK_COMMAND, *map(str, (*fds, os.getpid()))],
                pass_fds=fds,
                stdin=subprocess.DEVNULL,
                cwd=Path(package_folder).parent,
            )
        self._processes.append(process)
        ours.sendall(encode_frame(Start(config)))
