"""A rank finds rank 0 on another host and joins its group, as engine/distributed/reception.py describes."""

import logging
import select
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass

import msgspec

from engine.config import EngineConfig
from engine.distributed.agreement import Hello, RankDescription, adopted
from engine.distributed.keepalive import limit_silence
from engine.distributed.packets import PacketKind, receive_packet, send_packet
from engine.distributed.stores import port_in_agent_store
from engine.errors import EngineConfigError, FatalEngineError

JOIN_S = 600.0  # for rank 0 to be there: hosts start at different times, and names are not known at once
TAKEN_S = 30.0  # for rank 0 to drop a dead connection of this rank: more than keepalive.SILENCE_S
RETRY_S = 0.5
CONNECT_S = 5.0
LOOK_S = 0.2  # between two calls of `on_wait`

log = logging.getLogger("smoe.engine")


class RankTakenError(Exception):
    """Rank 0 has a connection of a rank with this number already. The message is one line."""


@dataclass(frozen=True)
class Membership:
    """A rank's connection to rank 0, which has received it."""

    connection: socket.socket
    config: EngineConfig  # rank 0's, with the settings of this host

    @property
    def own_address(self) -> str:
        """Address of this host, which reaches rank 0's."""
        return str(self.connection.getsockname()[0])

    @property
    def leader_address(self) -> str:
        """Address of rank 0's host."""
        return str(self.connection.getpeername()[0])

    def describe(self, description: RankDescription, on_wait: Callable[[], None]) -> int:
        """Tell rank 0 what this rank computes with; return the port of the group's store once all ranks are there.

        Calls `on_wait` meanwhile. Raises EngineConfigError if rank 0 refuses, and FatalEngineError if it ends or its
        host vanishes.
        """
        try:
            packet = self._exchange(msgspec.msgpack.encode(description), on_wait)
        except OSError as error:
            reason = error.strerror or "its host does not answer"
            raise FatalEngineError(f"rank 0 was lost before the group was complete: {reason}") from None
        if packet is None:
            raise FatalEngineError("rank 0 ended before the group was complete")
        port = int.from_bytes(_unless_failed(*packet), "little")
        limit_silence(self.connection, self.config.group_timeout)
        return port

    def _exchange(self, description: bytes, on_wait: Callable[[], None]) -> tuple[PacketKind, bytearray] | None:
        """Send a description and wait for the answer; None at the end of the connection. Raises OSError."""
        send_packet(self.connection, PacketKind.DESCRIBED, description)
        poll = select.poll()
        poll.register(self.connection, select.POLLIN)
        while not poll.poll(LOOK_S * 1000):
            on_wait()
        return receive_packet(self.connection)


class _RetryLimits:
    """Limits of the time for which a rank asks rank 0 again."""

    def __init__(self, where: str, timeout_s: float, taken_s: float) -> None:
        self._where = where
        self._timeout_s = timeout_s
        self._taken_s = taken_s
        self._start_s = time.monotonic()
        self._taken_since_s: float | None = None
        self._last_reason = ""

    def check(self, error: OSError | UnicodeError | RankTakenError) -> None:
        """Log a new reason to ask again. Raises EngineConfigError and FatalEngineError, see join()."""
        if isinstance(error, RankTakenError):
            reason = str(error)
            self._check_taken(reason)
        else:  # rank 0 is not there yet, or is just gone
            reason = getattr(error, "strerror", None) or "it does not answer"
            self._taken_since_s = None
            self._check_absent(reason, is_a_name=not isinstance(error, UnicodeError))
        if reason != self._last_reason:
            log.info("waiting for rank 0 at %s: %s", self._where, reason)
            self._last_reason = reason

    def _check_absent(self, reason: str, is_a_name: bool) -> None:
        if time.monotonic() - self._start_s > self._timeout_s:
            error = FatalEngineError if is_a_name else EngineConfigError  # no restart cures the address
            raise error(f"{self._where}: rank 0 did not come in {self._timeout_s:g} s: {reason}") from None

    def _check_taken(self, reason: str) -> None:
        now_s = time.monotonic()
        if self._taken_since_s is None:
            self._taken_since_s = now_s
        if now_s - self._taken_since_s >= self._taken_s:
            raise EngineConfigError(reason) from None


def join(
    config: EngineConfig,
    version: str,
    on_wait: Callable[[], None],
    timeout_s: float = JOIN_S,
    taken_s: float = TAKEN_S,
) -> Membership:
    """Connect to rank 0; wait for `timeout_s` until it is there. Calls `on_wait` meanwhile.

    While rank 0 has another connection of this rank, ask again for `taken_s`. Raises EngineConfigError if rank 0
    refuses or --master-addr cannot be a name; FatalEngineError if rank 0 does not come.
    """
    hello = Hello(config.rank, config.tensor_parallel_size, config.nnodes, version)
    where = f"--master-addr {config.master_addr} --master-port {config.master_port}"
    limits = _RetryLimits(where, timeout_s, taken_s)
    while True:
        try:
            return _ask(config, hello)
        except (OSError, UnicodeError, RankTakenError) as error:
            limits.check(error)
        on_wait()
        time.sleep(RETRY_S)


def _ask(config: EngineConfig, hello: Hello) -> Membership:
    """Ask rank 0 once.

    Raises OSError, UnicodeError for a name that cannot be one, RankTakenError, and EngineConfigError.
    """
    port = config.master_port
    if config.agent_store_attempt is not None:
        port = port_in_agent_store(config.master_addr, port, config.agent_store_attempt)
    connection = socket.create_connection((config.master_addr, port), CONNECT_S)
    try:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        limit_silence(connection)
        send_packet(connection, PacketKind.HELLO, msgspec.msgpack.encode(hello))
        packet = receive_packet(connection)
        if packet is None:
            raise ConnectionResetError
        kind, content = packet
        if kind is PacketKind.TAKEN:
            raise RankTakenError(content.decode())
        shared = msgspec.msgpack.decode(_unless_failed(kind, content), type=EngineConfig)
    except BaseException:
        connection.close()
        raise
    connection.settimeout(None)
    return Membership(connection, adopted(shared, config))


def _unless_failed(kind: PacketKind, content: bytearray) -> bytearray:
    """Return the content of a packet. Raises EngineConfigError if it says why rank 0 refuses."""
    if kind is PacketKind.FAILED:
        raise EngineConfigError(content.decode())
    return content
