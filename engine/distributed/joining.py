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
from engine.distributed.packets import PacketKind, receive_packet, send_packet
from engine.distributed.stores import port_in_agent_store
from engine.errors import EngineConfigError, FatalEngineError

JOIN_S = 600.0  # for rank 0 to be there: hosts start at different times, and names are not known at once
RETRY_S = 0.5
CONNECT_S = 5.0
LOOK_S = 0.2  # between two calls of `on_wait`

log = logging.getLogger("smoe.engine")


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

        Calls `on_wait` meanwhile. Raises EngineConfigError if rank 0 refuses, FatalEngineError if it ends, OSError.
        """
        send_packet(self.connection, PacketKind.DESCRIBED, msgspec.msgpack.encode(description))
        poll = select.poll()
        poll.register(self.connection, select.POLLIN)
        while not poll.poll(LOOK_S * 1000):
            on_wait()
        packet = receive_packet(self.connection)
        if packet is None:
            raise FatalEngineError("rank 0 ended before the group was complete")
        return int.from_bytes(_unless_failed(*packet), "little")


def join(config: EngineConfig, version: str, on_wait: Callable[[], None], timeout_s: float = JOIN_S) -> Membership:
    """Connect to rank 0; wait for `timeout_s` until it is there. Calls `on_wait` meanwhile.

    Raises EngineConfigError if rank 0 refuses or does not come.
    """
    deadline_s, last_reason = time.monotonic() + timeout_s, ""
    hello = Hello(config.rank, config.tensor_parallel_size, config.nnodes, version)
    where = f"--master-addr {config.master_addr} --master-port {config.master_port}"
    while True:
        try:
            return _ask(config, hello)
        except (OSError, UnicodeError) as error:  # not there yet, or just gone
            reason = getattr(error, "strerror", None) or "it does not answer"
            if time.monotonic() > deadline_s:
                raise EngineConfigError(f"{where}: rank 0 did not come in {timeout_s:g} s: {reason}") from None
        if reason != last_reason:
            log.info("waiting for rank 0 at %s: %s", where, reason)
            last_reason = reason
        on_wait()
        time.sleep(RETRY_S)


def _ask(config: EngineConfig, hello: Hello) -> Membership:
    """Ask rank 0 once. Raises OSError, UnicodeError for a name that cannot be one, and EngineConfigError."""
    port = config.master_port
    if config.agent_store_attempt is not None:
        port = port_in_agent_store(config.master_addr, port, config.agent_store_attempt)
    connection = socket.create_connection((config.master_addr, port), CONNECT_S)
    try:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        send_packet(connection, PacketKind.HELLO, msgspec.msgpack.encode(hello))
        packet = receive_packet(connection)
        if packet is None:
            raise ConnectionResetError
        shared = msgspec.msgpack.decode(_unless_failed(*packet), type=EngineConfig)
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
