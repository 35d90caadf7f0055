"""The processes of ranks 1, 2, ... on one host as rank 0 sees them: started, told what to compute, watched.

They live and die together: the kernel ends a rank when rank 0 ends, and rank 0 ends when it sees that a rank is gone.
Shared memory is anonymous, so nothing of it is left.
"""

import logging
import os
import select
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from threading import Thread

import msgspec

import engine
from engine.config import EngineConfig
from engine.distributed.connections import RankConnections
from engine.distributed.host_processes import NOT_STARTED
from engine.distributed.packets import PacketKind, send_packet
from engine.errors import EngineConfigError
from model.config import ModelConfig
from model.cut import Cut, gather_buffer_bytes
from model.ops.native.group import SharedGroup, shared_bytes
from model.ops.native.library import NativeLibrary

RANK_COMMAND = (sys.executable, "-m", "engine.rank")
WATCH_S = 1.0  # interval at which ranks that others wait for are looked for
LATE_S = 5.0  # after which a rank that others wait for is named
END_GRACE_S = 2.0  # for a rank to exit after its socket was closed

log = logging.getLogger("smoe.engine")


class Ranks(RankConnections):
    """Ranks 1 .. size - 1, each a process with a socket to this one, and the group of all ranks."""

    group: SharedGroup

    def __init__(self, config: EngineConfig, model: ModelConfig) -> None:
        """Start the processes, which begin to load. Raises EngineConfigError if the system cannot start them."""
        super().__init__()
        self._processes: list[subprocess.Popen[bytes]] = []
        library, size, buffer_bytes = NativeLibrary(), config.tensor_parallel_size, gather_buffer_bytes(model)
        fd = os.memfd_create("smoe-ranks")
        try:
            os.truncate(fd, shared_bytes(library, size, buffer_bytes))
            self.group = SharedGroup(library, Cut(0, size), fd, buffer_bytes)
            self._start_all(config, fd)
        finally:
            os.close(fd)

    @property
    def pids(self) -> list[int]:
        """Process ids of ranks 1, 2, ..."""
        return [process.pid for process in self._processes]

    def _start_all(self, config: EngineConfig, memory_fd: int) -> None:
        size = config.tensor_parallel_size
        try:
            for rank in range(1, size):
                self._start(rank, memory_fd)
            for connection in self._connections:
                send_packet(connection, PacketKind.CONFIG, msgspec.msgpack.encode(config))
        except OSError as error:
            self.close()
            raise EngineConfigError(f"--tensor-parallel-size {size}: {NOT_STARTED}: {error.strerror}") from None

    def _start(self, rank: int, memory_fd: int) -> None:
        ours, theirs = socket.socketpair()
        self._connections.append(ours)
        with theirs:
            (package_folder,) = engine.__path__
            arguments = theirs.fileno(), memory_fd, rank, os.getpid()
            process = subprocess.Popen(
                [*RANK_COMMAND, *map(str, arguments)],
                pass_fds=(theirs.fileno(), memory_fd),
                stdin=subprocess.DEVNULL,
                cwd=Path(package_folder).parent,
            )
        self._processes.append(process)

    def wait_until_loaded(self, on_progress: Callable[[], None]) -> None:
        """Wait for all ranks, and watch them from then on. Raises EngineConfigError and FatalEngineError."""
        super().wait_until_loaded(on_progress)
        Thread(target=self._watch, name="ranks", daemon=True).start()

    def close(self) -> None:
        """End the processes and wait for that. Idempotent."""
        super().close()
        for process in self._processes:
            try:
                process.wait(END_GRACE_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def _watch(self) -> None:
        """Wait for the end of a rank; name ranks that the others wait for."""
        poll, ranks = (
            select.poll(),
            {os.pidfd_open(process.pid): rank for rank, process in enumerate(self._processes, 1)},
        )
        for fd in ranks:
            poll.register(fd, select.POLLIN)
        seen, since_s = self._arrivals(), time.monotonic()
        while not (gone := poll.poll(WATCH_S * 1000)):
            arrivals = self._arrivals()
            if arrivals != seen:
                seen, since_s = arrivals, time.monotonic()
            elif (late := late_ranks(arrivals)) and time.monotonic() - since_s >= LATE_S:
                log.warning("the other ranks wait for rank %s", ", ".join(map(str, late)))
                since_s = float("inf")  # once
        if not self._is_closing:
            self.death = self._describe_end(ranks[gone[0][0]])
            log.error("%s: the engine ends", self.death)
            self.group.end()
            self.on_death(self.death)

    def _arrivals(self) -> list[int]:
        return [self.group.num_arrivals(rank) for rank in range(self.group.cut.size)]

    def _describe_end(self, rank: int) -> str:
        code = self._processes[rank - 1].wait()
        return f"rank {rank} was killed by signal {-code}" if code < 0 else f"rank {rank} exited with {code}"


def late_ranks(arrivals: list[int]) -> list[int]:
    """Return the ranks that have not reached the gather in which others wait.

    Example: counts 7, 6, 7 of ranks 0, 1, 2 -> [1]. The counts are modulo 2^32.
    """
    latest = max(arrivals, key=lambda count: (count - arrivals[0] + 2**31) % 2**32)
    return [rank for rank, count in enumerate(arrivals) if count != latest]
