"""The processes of ranks 1, 2, ... as rank 0 sees them: started, told what to compute, watched.

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
from typing import Literal

import msgspec

import engine
from engine.config import EngineConfig
from engine.distributed.packets import PacketKind, encode_step, receive_packet, send_packet
from engine.errors import EngineConfigError, FatalEngineError
from model.config import ModelConfig
from model.cut import Cut, gather_buffer_bytes
from model.forward_batch import ForwardBatch
from model.group import ALONE, Group
from model.ops.native.group import SharedGroup, shared_bytes
from model.ops.native.library import NativeLibrary

RANK_COMMAND = (sys.executable, "-m", "engine.rank")
WATCH_S = 1.0  # interval at which ranks that others wait for are looked for
LATE_S = 5.0  # after which a rank that others wait for is named
END_GRACE_S = 2.0  # for a rank to exit after its socket was closed

log = logging.getLogger("smoe.engine")


class Ranks:
    """Ranks 1 .. size - 1, each a process with a socket to this one, and the group of all ranks."""

    def __init__(self, config: EngineConfig, model: ModelConfig) -> None:
        """Start the processes, which begin to load. Raises OSError."""
        self.on_death: Callable[[str], None] = lambda message: None  # called by another thread when a rank is gone
        self.death = ""  # how the first rank ended that is gone
        self._is_closing = False
        self._processes: list[subprocess.Popen[bytes]] = []
        self._connections: list[socket.socket] = []
        library, size, buffer_bytes = NativeLibrary(), config.tensor_parallel_size, gather_buffer_bytes(model)
        fd = os.memfd_create("smoe-ranks")
        try:
            os.truncate(fd, shared_bytes(library, size, buffer_bytes))
            self._group = SharedGroup(library, Cut(0, size), fd, buffer_bytes)
            for rank in range(1, size):
                self._start(rank, fd)
        finally:
            os.close(fd)
        for connection in self._connections:
            send_packet(connection, PacketKind.CONFIG, msgspec.msgpack.encode(config))

    @property
    def group(self) -> Group:
        """The group, as rank 0."""
        return self._group

    @property
    def pids(self) -> list[int]:
        """Process ids of ranks 1, 2, ..."""
        return [process.pid for process in self._processes]

    def _start(self, rank: int, memory_fd: int) -> None:
        ours, theirs = socket.socketpair()
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
        self._connections.append(ours)

    def wait_until_loaded(self, on_progress: Callable[[], None]) -> None:
        """Wait for all ranks, and watch them from then on. Raises EngineConfigError and FatalEngineError."""
        for rank, connection in enumerate(self._connections, 1):
            while True:
                packet = receive_packet(connection)
                if packet is None:
                    raise FatalEngineError(f"rank {rank} {self._wait(rank)} while it was loading")
                kind, content = packet
                if kind is PacketKind.FAILED:
                    raise EngineConfigError(content.decode())
                if kind is PacketKind.LOADED:
                    break
                on_progress()
        Thread(target=self._watch, name="ranks", daemon=True).start()

    def create_pools(self, num_blocks: int) -> None:
        """Let each rank create its part of a KV pool of `num_blocks` blocks, the null block included."""
        self._tell(PacketKind.POOL, num_blocks.to_bytes(8, "little"))

    def fill_with_zeros(self, kind: Literal[PacketKind.ZERO_BLOCKS, PacketKind.ZERO_SLOTS], indices: bytes) -> None:
        """Let each rank fill blocks or slots with zeros; `indices` are int64."""
        self._tell(kind, indices)

    def start_step(self, batch: ForwardBatch) -> None:
        """Let each rank compute its part of a step; this process must compute its own next."""
        self._tell(PacketKind.STEP, encode_step(batch))

    def close(self) -> None:
        """End the processes and wait for that. Idempotent."""
        self._is_closing = True
        for connection in self._connections:
            connection.close()
        for process in self._processes:
            try:
                process.wait(END_GRACE_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def _tell(self, kind: PacketKind, payload: bytes) -> None:
        try:
            for connection in self._connections:
                send_packet(connection, kind, payload)
        except OSError as error:
            raise FatalEngineError(self.death or f"a rank cannot be reached: {error.strerror}") from None

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
            rank = ranks[gone[0][0]]
            self.death = f"rank {rank} {self._wait(rank)}"
            log.error("%s: the engine ends", self.death)
            self._group.end()
            self.on_death(self.death)

    def _arrivals(self) -> list[int]:
        return [self._group.num_arrivals(rank) for rank in range(self._group.cut.size)]

    def _wait(self, rank: int) -> str:
        """Return how the process of a rank ended, in words."""
        code = self._processes[rank - 1].wait()
        return f"was killed by signal {-code}" if code < 0 else f"exited with {code}"


def late_ranks(arrivals: list[int]) -> list[int]:
    """Return the ranks that have not reached the gather in which others wait.

    Example: counts 7, 6, 7 of ranks 0, 1, 2 -> [1]. The counts are modulo 2^32.
    """
    latest = max(arrivals, key=lambda count: (count - arrivals[0] + 2**31) % 2**32)
    return [rank for rank, count in enumerate(arrivals) if count != latest]


def group_of(ranks: Ranks | None) -> Group:
    """Return the group of rank 0, or a single rank."""
    return ALONE if ranks is None else ranks.group
