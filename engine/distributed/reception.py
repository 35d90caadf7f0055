"""Rank 0 receives the ranks of other hosts: it waits until each is there and agrees on what they will compute.

    a rank            rank 0
      | HELLO           |     who it is
      |          CONFIG |     the settings that all ranks share
      | DESCRIBED       |     its numerics and checkpoint
      |            JOIN |     once all are there: the port of the store by which they find each other

Whoever does not fit gets FAILED with a reason, and rank 0 continues to wait for the right one. A rank whose number has
a connection already gets TAKEN and asks again for a while: after a loss of power that connection may be its own, dead.
"""

import logging
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass

import msgspec

from engine.config import EngineConfig
from engine.distributed.agreement import Hello, RankDescription, difference, refusal
from engine.distributed.arrivals import Guest, Guests
from engine.distributed.packets import PacketKind, send_packet
from engine.errors import EngineConfigError, EngineError, FatalEngineError

JOIN_S = 600.0  # for all ranks to come: hosts start at different times
MAX_FAULTS = 100  # that are logged: whoever reaches the port can cause them
MAX_FAULT_CHARS = 300

log = logging.getLogger("smoe.engine")


@dataclass(frozen=True)
class Refusal:
    """Answer to a connection that is sent away."""

    reason: str  # one line for the other host's log
    misfit: int | None = None  # the rank, if its settings or checkpoint do not fit
    kind: PacketKind = PacketKind.FAILED


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
        self._misfit: int | None = None  # rank whose settings or checkpoint are the last fault
        self._num_faults = 0

    def wait(
        self, on_wait: Callable[[], None], timeout_s: float = JOIN_S, find_ended: Callable[[], dict[int, str]] = dict
    ) -> list[Guest]:
        """Return ranks 1, 2, ... when all are there. Calls `on_wait` meanwhile. `find_ended` returns ranks that will
        not come any more, and how they ended.

        Raises EngineConfigError if the last fault is a rank's settings or checkpoint, else FatalEngineError: the ranks
        may come after a restart.
        """
        deadline_s = self._clock() + timeout_s
        while missing := self._missing():
            if self._clock() > deadline_s:
                self.close()
                raise self._error(self._explain(missing, timeout_s), self._misfit is not None)
            ended = find_ended()
            self._guests.look(self._hear)
            self._raise_if_gone(ended)
            on_wait()
        for guest in [guest for guest in self._guests if not guest.is_present]:
            guest.connection.close()
        return sorted((guest for guest in self._guests if guest.is_present), key=lambda guest: guest.rank or 0)

    def close(self) -> None:
        """Close all connections."""
        self._guests.close()

    def _raise_if_gone(self, ended: dict[int, str]) -> None:
        """Raise the reason of a rank that has ended, once all that it said is heard; see wait()."""
        for rank, end in ended.items():
            if all(guest.rank != rank for guest in self._guests):
                self.close()
                is_misfit = rank == self._misfit
                raise self._error(self._last_fault if is_misfit else end, is_misfit)

    def _error(self, message: str, is_misfit: bool) -> EngineError:
        return EngineConfigError(message) if is_misfit else FatalEngineError(message)

    def _missing(self) -> list[int]:
        present = {guest.rank for guest in self._guests if guest.is_present}
        return [rank for rank in range(1, self._config.tensor_parallel_size) if rank not in present]

    def _explain(self, missing: list[int], timeout_s: float) -> str:
        ranks = f"rank{'s' * (len(missing) > 1)} {', '.join(map(str, missing))}"
        fault = f"; {self._last_fault}" if self._last_fault else ""
        return f"{ranks} did not come in {timeout_s:g} s{fault}"

    def _hear(self, guest: Guest) -> bool:
        """Receive what a guest sends and answer a packet; return False if the connection is of no more use."""
        try:
            packet = guest.receive()
            if packet is None:
                return True
            kind, content = packet
            if kind is PacketKind.FAILED and guest.rank is not None:
                reason = content.decode(errors="replace")
                self._note(f"rank {guest.rank} on {guest.address} ended: {reason}", guest.rank)
                return False
            if refusal := self._answer(guest, kind, content):
                self._send_away(guest, refusal)
                return False
        except (OSError, msgspec.MsgspecError):
            return False
        return True

    def _send_away(self, guest: Guest, refusal: Refusal) -> None:
        """Note a refusal, once if the rank asks again and again, and send it. Raises OSError."""
        fault = f"{guest.address} was refused: {refusal.reason}"
        if refusal.kind is not PacketKind.TAKEN or fault != self._last_fault:
            self._note(fault, refusal.misfit)
        send_packet(guest.connection, refusal.kind, refusal.reason.encode())

    def _note(self, fault: str, misfit: int | None = None) -> None:
        """Log why somebody is sent away, and keep it for the end of a wait in vain. A stranger may have written it.

        `misfit`: the rank whose settings or checkpoint are the fault."""
        text = " ".join(fault[:MAX_FAULT_CHARS].split())
        self._last_fault = "".join(character if character.isprintable() else "?" for character in text)
        self._misfit = misfit
        self._num_faults += 1
        if self._num_faults <= MAX_FAULTS:
            log.warning("%s", self._last_fault)

    def _answer(self, guest: Guest, kind: PacketKind, content: bytes) -> Refusal | None:
        """Answer a packet; return why the rank is refused, if it is. Raises OSError and MsgspecError."""
        if kind is PacketKind.HELLO and guest.rank is None:
            hello = msgspec.msgpack.decode(content, type=Hello)
            if reason := refusal(hello, self._config, self._version):
                return Refusal(reason, hello.rank)
            if any(other.rank == hello.rank for other in self._guests):
                reason = f"rank {hello.rank} is there already: another host has the same --node-rank"
                return Refusal(reason, kind=PacketKind.TAKEN)
            guest.rank = hello.rank
            send_packet(guest.connection, PacketKind.CONFIG, msgspec.msgpack.encode(self._config))
            return None
        if kind is PacketKind.DESCRIBED and guest.rank is not None:
            other = msgspec.msgpack.decode(content, type=RankDescription)
            if reason := difference(guest.rank, self._own, other):
                return Refusal(reason, guest.rank)
            guest.is_present = True
            if guest.rank == self._misfit:  # it fits now
                self._misfit = None
            return None
        return Refusal("this is no rank of smoe")
