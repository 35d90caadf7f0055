"""Connections of each rank to every other one, over which ranks of several hosts gather.

A rank listens at a port that the system chooses, and writes it into the group's store. It connects to the ranks below
itself and accepts those above. A connection begins with a packet that says which rank it is, and with the group's
token, which is in the store too: whoever else finds the port is sent away, as at rank 0's.
"""

import hmac
import secrets
import socket
import time
from collections.abc import Collection
from contextlib import ExitStack
from datetime import timedelta

import msgspec
from torch.distributed import Store  # type: ignore[attr-defined]

from engine.distributed.arrivals import Guest, Guests
from engine.distributed.keepalive import limit_silence
from engine.distributed.packets import PacketKind, send_packet
from model.cut import Cut
from model.group import GroupEndedError
from model.ops.native.group import SocketGroup
from model.ops.native.library import NativeLibrary

TOKEN_KEY, TOKEN_BYTES = "token", 16

Connections = dict[int, socket.socket]  # by rank


class Greeting(msgspec.Struct, frozen=True):
    """First words of a rank to another one."""

    rank: int
    token: bytes


def connected_group(cut: Cut, store: Store, address: str, timeout_s: float) -> SocketGroup:
    """Connect to all other ranks, which do the same at this time, and return the group.

    `store`: shared by these ranks, and used for nothing else; `address`: of this host, which the others reach;
    `timeout_s`: limit of each wait for another rank. Raises GroupEndedError.
    """
    store.set_timeout(timedelta(seconds=timeout_s))
    with ExitStack() as opened:
        try:
            connections = _connect(cut, store, address, timeout_s, opened)
        except (OSError, RuntimeError) as error:  # the store's errors are RuntimeErrors of several lines
            reason = getattr(error, "strerror", None) or str(error).partition("\n")[0]
            raise GroupEndedError(f"the ranks cannot connect to each other: {reason}") from None
        opened.pop_all()
    return SocketGroup(NativeLibrary(), cut, connections, timeout_s)


def prepare_connection(connection: socket.socket, timeout_s: float) -> None:
    """Send small packets at once, and give up a host that acknowledges nothing for `timeout_s`."""
    connection.settimeout(None)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    limit_silence(connection, timeout_s)


def _connect(cut: Cut, store: Store, address: str, timeout_s: float, opened: ExitStack) -> Connections:
    """Return all connections, which `opened` closes. Raises OSError and RuntimeError."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.create_server((address, 0), family=family) as listener:
        if cut.rank == 0:
            store.set(TOKEN_KEY, secrets.token_hex(TOKEN_BYTES))
        store.set(_port_key(cut.rank), f"{listener.getsockname()[1]} {address}")
        greeting = Greeting(cut.rank, store.get(TOKEN_KEY))
        connections = {rank: opened.enter_context(_greet(store, rank, greeting, timeout_s)) for rank in range(cut.rank)}
        above = range(cut.rank + 1, cut.size)
        connections |= _accept(listener, above, greeting.token, timeout_s, opened)
    for connection in connections.values():
        prepare_connection(connection, timeout_s)
    return connections


def _port_key(rank: int) -> str:
    return f"rank {rank}"


def _greet(store: Store, rank: int, greeting: Greeting, timeout_s: float) -> socket.socket:
    """Connect to a rank and say which one this is."""
    port, _, address = store.get(_port_key(rank)).decode().partition(" ")
    connection = socket.create_connection((address, int(port)), timeout_s)
    send_packet(connection, PacketKind.GREETING, msgspec.msgpack.encode(greeting))
    return connection


def _accept(
    listener: socket.socket, ranks: Collection[int], token: bytes, timeout_s: float, opened: ExitStack
) -> Connections:
    """Wait for these ranks. Raises TimeoutError."""
    guests, accepted, deadline_s = Guests(listener), Connections(), time.monotonic() + timeout_s

    def hear(guest: Guest) -> bool:
        rank = _greeted_rank(guest, token)
        if rank is not None and rank in ranks and rank not in accepted:  # what follows are gathers
            accepted[rank] = opened.enter_context(guests.release(guest))
            return True
        return rank is None

    try:
        while missing := [rank for rank in ranks if rank not in accepted]:
            if time.monotonic() > deadline_s:
                raise TimeoutError(f"rank {missing[0]} did not come in {timeout_s:g} s")
            guests.look(hear)
    finally:
        guests.close()
    return accepted


def _greeted_rank(guest: Guest, token: bytes) -> int | None:
    """Return which rank a guest is; None if it has not said all of it yet, and -1 if it is a stranger."""
    try:
        packet = guest.receive()
        if packet is None:
            return None
        greeting = msgspec.msgpack.decode(packet[1], type=Greeting)
    except (OSError, msgspec.MsgspecError):
        return -1
    is_ours = packet[0] is PacketKind.GREETING and hmac.compare_digest(greeting.token, token)
    return greeting.rank if is_ours else -1
