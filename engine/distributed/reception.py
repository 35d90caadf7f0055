"""Rank 0 receives the ranks of other hosts: it waits until each is there and agrees on what they will compute.

    a rank            rank 0
      | HELLO           |     who it is
      |          CONFIG |     the settings that all ranks share
      | DESCRIBED       |     its numerics and checkpoint
      |            JOIN |     once all are there: the port of the store by which they find each other

Whoever does not fit gets FAILED with a reason, and rank 0 goes on waiting for the right one.
"""

import logging
import socket
import time
from collections.abc import Callable

import msgspec

from engine.config import EngineConfig
from engine.distributed.agreement import Hello, RankDescription, difference, refusal
from engine.distributed.arrivals import Guest, Guests
from engine.distributed.packets import PacketKind, send_packet
from engine.errors import EngineConfigError

JOIN_S = 600.0  # for all ranks to come: hosts start at different times
MAX_FAULTS = 100  # that are logged: whoever reaches the port can cause them
MAX_FAULT_CHARS = 300

log = logging.getLogger("smoe.engine")


class Reception:
    """Accepts connections until all ranks are there."""

    def __init__(
        self,
        listener: socket.socket,
        config: EngineConfig,
        own: RankDescription,
        version: str,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`listener` listens; the caller keeps it."""
        self._config = config
        self._own = own
        self._version = version
        self._clock = clock
        self._guests = Guests(listener, clock)
        self._last_fault = ""
        self._failed_rank: int | None = None  # which the last fault is about
        self._num_faults = 0

    def wait(
        self, on_wait: Callable[[], None], timeout_s: float = JOIN_S, find_ended: Callable[[], dict[int, str]] = dict
    ) -> list[Guest]:
        """Return ranks 1, 2, ... when all are there. Calls `on_wait` meanwhile. `find_ended` returns ranks that will
        not come any more, and how they ended. Raises EngineConfigError."""
        deadline_s = self._clock() + timeout_s
        while missing := self._missing():
            if self._clock() > deadline_s:
                self.close()
                raise EngineConfigError(self._explain(missing, timeout_s))
            ended = find_ended()
            self._guests.look(self._hear)
            self._refuse(ended)
            on_wait()
        for guest in [guest for guest in self._guests if not guest.is_present]:
            guest.connection.close()
        return sorted((guest for guest in self._guests if guest.is_present), key=lambda guest: guest.rank or 0)

    def close(self) -> None:
        """Close all connections."""
        self._guests.close()

    def _refuse(self, ended: dict[int, str]) -> None:
        """Raise EngineConfigError with the reason of a rank that has ended, once all that it said is heard."""
        for rank, end in ended.items():
            if all(guest.rank != rank for guest in self._guests):
                self.close()
                raise EngineConfigError(self._last_fault if rank == self._failed_rank else end)

    def _missing(self) -> list[int]:
        present = {guest.rank for guest in self._guests if guest.is_present}
        return [rank for rank in range(1, self._config.tensor_parallel_size) if rank not in present]

    def _explain(self, missing: list[int], timeout_s: float) -> str:
        ranks = f"rank{'s' * (len(missing) > 1)} {', '.join(map(str, missing))}"
        fault = f"; {self._last_fault}" if self._last_fault else ""
        return f"{ranks} did not come in {timeout_s:g} s{fault}"

    def _hear(self, guest: Guest) -> bool:
        """Receive what a guest sends and answer a packet; return False if the connection is of no more use."""
        reason = ""
        try:
            packet = guest.receive()
            if packet is None:
                return True
            kind, content = packet
            if kind is PacketKind.FAILED and guest.rank is not None:
                reason = content.decode(errors="replace")
                self._note(f"rank {guest.rank} on {guest.address} ended: {reason}", guest.rank)
                return False
            if reason := self._answer(guest, kind, content):
                self._note(f"{guest.address} was refused: {reason}")
                send_packet(guest.connection, PacketKind.FAILED, reason.encode())
        except (OSError, msgspec.MsgspecError):
            return False
        return not reason

    def _note(self, fault: str, failed_rank: int | None = None) -> None:
        """Log why somebody is sent away, and keep it for the end of a wait in vain. A stranger may have written it.

        `failed_rank`: the rank that said why it ends."""
        text = " ".join(fault[:MAX_FAULT_CHARS].split())
        self._last_fault = "".join(character if character.isprintable() else "?" for character in text)
        self._failed_rank = failed_rank
        self._num_faults += 1
        if self._num_faults <= MAX_FAULTS:
            log.warning("%s", self._last_fault)

    def _answer(self, guest: Guest, kind: PacketKind, content: bytes) -> str:
        """Answer a packet; return why the rank is refused, if it is. Raises OSError and MsgspecError."""
        if kind is PacketKind.HELLO and guest.rank is None:
            hello = msgspec.msgpack.decode(content, type=Hello)
            if reason := refusal(hello, self._config, self._version):
                return reason
            if any(other.rank == hello.rank for other in self._guests):
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
