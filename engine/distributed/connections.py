"""Connections from rank 0 to the other ranks: what it tells them, and whether they are still there."""

import socket
from collections.abc import Callable
from threading import Lock
from typing import Literal

from engine.distributed.packets import PacketKind, encode_step, receive_packet, send_packet
from engine.errors import EngineConfigError, FatalEngineError
from model.forward_batch import ForwardBatch
from model.group import ALONE, Group


class RankConnections:
    """Ranks 1 .. size - 1 and the group of all ranks, as rank 0 sees them. Subclasses start or await them, and watch
    them."""

    group: Group  # the group, as rank 0

    def __init__(self) -> None:
        self.on_death: Callable[[str], None] = lambda message: None  # called by another thread when a rank is gone
        self.death = ""  # how the first rank ended that is gone
        self._is_closing = False
        self._connections: list[socket.socket] = []
        self._sending = Lock()  # packets of two threads must not mix

    def wait_until_loaded(self, on_progress: Callable[[], None]) -> None:
        """Wait for all ranks. Raises EngineConfigError and FatalEngineError."""
        for rank, connection in enumerate(self._connections, 1):
            kind = PacketKind.PROGRESS
            while kind is not PacketKind.LOADED:
                self._await_packet(connection, on_progress)
                kind, content = self._receive(rank, connection)
                if kind is PacketKind.FAILED:
                    raise EngineConfigError(content.decode())
                on_progress()
            self._on_loaded(content)

    def _receive(self, rank: int, connection: socket.socket) -> tuple[PacketKind, bytearray]:
        """Receive a packet from a rank that loads. Raises FatalEngineError."""
        try:
            packet = receive_packet(connection)
        except OSError:
            packet = None
        if packet is None:
            raise FatalEngineError(f"{self._describe_end(rank)} while it was loading")
        return packet

    def create_pools(self, num_blocks: int) -> None:
        """Let each rank create its part of a KV pool of `num_blocks` blocks, the null block included."""
        self._tell(PacketKind.POOL, num_blocks.to_bytes(8, "little"))

    def populate_pools(self) -> None:
        """Let each rank write its whole KV pool."""
        self._tell(PacketKind.POPULATE, b"")

    def capture_graphs(self, table_width: int) -> None:
        """Let each rank capture decode steps over its pool; this process must capture its own next."""
        self._tell(PacketKind.GRAPHS, table_width.to_bytes(8, "little"))

    def fill_with_zeros(self, kind: Literal[PacketKind.ZERO_BLOCKS, PacketKind.ZERO_SLOTS], indices: bytes) -> None:
        """Let each rank fill blocks or slots with zeros; `indices` are int64."""
        self._tell(kind, indices)

    def start_step(self, batch: ForwardBatch) -> None:
        """Let each rank compute its part of a step; this process must compute its own next."""
        self._tell(PacketKind.STEP, encode_step(batch))

    def free_bytes(self, own_bytes: int, step_bytes: int = 0) -> int:
        """Return what all memories together can give to a KV pool, of which each rank has an equal part. `own_bytes`:
        free in this rank's memory beside the largest steps; `step_bytes`: that these take in each of the others."""
        return own_bytes

    def close(self) -> None:
        """Let the ranks end, which they do when their connection is closed. Idempotent."""
        self._is_closing = True
        for connection in self._connections:
            connection.close()

    def _await_packet(self, connection: socket.socket, on_wait: Callable[[], None]) -> None:
        """Return when a packet may be received; call `on_wait` meanwhile, unless ranks send packets often enough."""

    def _on_loaded(self, content: bytearray) -> None:
        """Take what a rank says when it has loaded its part."""

    def _describe_end(self, rank: int) -> str:
        """Return which rank is gone, in words; subclasses know how it ended."""
        return f"rank {rank} is gone"

    def _tell(self, kind: PacketKind, payload: bytes) -> None:
        try:
            with self._sending:
                for connection in self._connections:
                    send_packet(connection, kind, payload)
        except OSError as error:
            raise FatalEngineError(self.death or f"a rank cannot be reached: {error.strerror}") from None


def group_of(ranks: RankConnections | None) -> Group:
    """Return the group of rank 0, or a single rank."""
    return ALONE if ranks is None else ranks.group
