"""Rank 0 receives the ranks of other hosts: it waits until each is there and agrees on what they will compute.

    a rank            rank 0
      | HELLO           |     who it is
      |          CONFIG |     the settings that all ranks share
      | DESCRIBED       |     its numerics and checkpoint
      |            JOIN |     once all are there: the port of the store by which gloo connects them

Whoever does not fit gets FAILED with a reason, and rank 0 goes on waiting for the right one.
"""

import logging
import select
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass

import msgspec

from engine.config import EngineConfig
from engine.distributed.agreement import Hello, RankDescription, difference, refusal
from engine.distributed.packets import PacketKind, receive_packet, send_packet
from engine.errors import EngineConfigError

JOIN_S = 600.0  # for all ranks to come: hosts start at different times
LOOK_S = 0.2  # between two calls of `on_wait`
HANDSHAKE_S = 10.0  # for the rest of a packet
MAX_BYTES = 1 << 16  # of a packet before a rank belongs to the group
KEEPALIVE = {socket.TCP_KEEPIDLE: 5, socket.TCP_KEEPINTVL: 5, socket.TCP_KEEPCNT: 3}  # gone after 20 s of silence

log = logging.getLogger("smoe.engine")


@dataclass
class Guest:
    """A connection, and what is known about it."""

    connection: socket.socket
    address: str
    rank: int | None = None  # after HELLO
    is_present: bool = False  # after DESCRIBED


class Reception:
    """Accepts connections until all ranks are there."""

    def __init__(self, listener: socket.socket, config: EngineConfig, own: RankDescription, version: str) -> None:
        """`listener` listens; the caller keeps it."""
        self._listener = listener
        self._config = config
        self._own = own
        self._version = version
        self._guests: dict[int, Guest] = {}  # by descriptor
        self._last_fault = ""

    def wait(self, on_wait: Callable[[], None], timeout_s: float = JOIN_S) -> list[Guest]:
        """Return ranks 1, 2, ... when all are there. Calls `on_wait` meanwhile. Raises EngineConfigError."""
        poll, deadline_s = select.poll(), time.monotonic() + timeout_s
        poll.register(self._listener, select.POLLIN)
        while missing := self._missing():
            if time.monotonic() > deadline_s:
                self.close()
                raise EngineConfigError(self._explain(missing, timeout_s))
            for fd, _ in poll.poll(LOOK_S * 1000):
                if fd == self._listener.fileno():
                    poll.register(self._accept(), select.POLLIN)
                elif not self._hear(self._guests[fd]):
                    poll.unregister(fd)
                    self._guests.pop(fd).connection.close()
            on_wait()
        for guest in [guest for guest in self._guests.values() if not guest.is_present]:
            guest.connection.close()
        present = (guest for guest in self._guests.values() if guest.is_present)
        return sorted(present, key=lambda guest: guest.rank or 0)

    def close(self) -> None:
        """Close all connections."""
        for guest in self._guests.values():
            guest.connection.close()

    def _missing(self) -> list[int]:
        present = {guest.rank for guest in self._guests.values() if guest.is_present}
        return [rank for rank in range(1, self._config.tensor_parallel_size) if rank not in present]

    def _explain(self, missing: list[int], timeout_s: float) -> str:
        ranks = f"rank{'s' * (len(missing) > 1)} {', '.join(map(str, missing))}"
        fault = f"; {self._last_fault}" if self._last_fault else ""
        return f"{ranks} did not come in {timeout_s:g} s{fault}"

    def _accept(self) -> int:
        connection, address = self._listener.accept()
        connection.settimeout(HANDSHAKE_S)
        for option, value in KEEPALIVE.items():  # a host that vanishes while others are awaited may come again
            connection.setsockopt(socket.IPPROTO_TCP, option, value)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        self._guests[connection.fileno()] = Guest(connection, address[0])
        return connection.fileno()

    def _hear(self, guest: Guest) -> bool:
        """Receive a packet and answer it; return False if the connection is of no more use."""
        try:
            packet = receive_packet(guest.connection, MAX_BYTES)
            if packet is None:
                return False
            kind, content = packet
            if kind is PacketKind.FAILED and guest.rank is not None:
                self._note(f"rank {guest.rank} on {guest.address} ended: {content.decode(errors='replace')}")
                return False
            if reason := self._answer(guest, kind, content):
                self._note(f"{guest.address} was refused: {reason}")
                send_packet(guest.connection, PacketKind.FAILED, reason.encode())
        except (OSError, msgspec.MsgspecError):
            return False
        return not reason

    def _note(self, fault: str) -> None:
        """Log why somebody is sent away, and keep it for the end of a wait in vain."""
        self._last_fault = fault
        log.warning("%s", fault)

    def _answer(self, guest: Guest, kind: PacketKind, content: bytearray) -> str:
        """Answer a packet; return why the rank is refused, if it is. Raises OSError and MsgspecError."""
        if kind is PacketKind.HELLO and guest.rank is None:
            hello = msgspec.msgpack.decode(content, type=Hello)
            if reason := refusal(hello, self._config, self._version):
                return reason
            if any(other.rank == hello.rank for other in self._guests.values()):
                return f"rank {hello.rank} is there already: another host has the same --node-rank"
            guest.rank = hello.rank
            send_packet(guest.connection, PacketKind.CONFIG, msgspec.msgpack.encode(self._config))
            return ""
        if kind is PacketKind.DESCRIBED and guest.rank is not None:
            other = msgspec.msgpack.decode(content, type=RankDescription)
            if reason := difference(guest.rank, self._own, other):
                return reason
            guest.is_present = True
            return ""
        return "this is no rank of smoe"
