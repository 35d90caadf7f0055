"""Ranks of several hosts connect each to every other one, and to nobody else."""

import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import msgspec
import pytest
import torch
from torch.distributed import HashStore

from engine.distributed.mesh import TOKEN_KEY, Greeting, connected_group
from engine.distributed.packets import PacketKind, send_packet
from model.cut import Cut
from model.group import GroupEndedError
from model.ops.native.group import SocketGroup
from tests.support.conditions import LIMIT_S
from tests.support.hosts.ranks import on_each_rank, socket_groups

WIDTH, UNIT = 200, 32


def assert_gathers(groups: list[SocketGroup]) -> None:
    """Let all ranks gather rows, one and more than sockets hold."""
    wholes = [torch.randn(rows, WIDTH, generator=torch.Generator().manual_seed(rows)) for rows in (1, 5000)]

    def gather(group: SocketGroup) -> bool:
        columns = group.cut.part(WIDTH, UNIT)
        parts = [whole[:, columns.start : columns.stop] for whole in wholes]
        return all(torch.equal(group.gather(p, WIDTH, UNIT), w) for p, w in zip(parts, wholes, strict=True))

    assert all(on_each_rank(groups, gather))


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
@pytest.mark.parametrize("size", [2, 4])
def test_all_ranks_are_connected(size: int, address: str) -> None:
    with socket_groups(size, address) as groups:
        assert_gathers(groups)


def test_small_parts_leave_at_once() -> None:
    with socket_groups(3) as groups:
        for group in groups:
            for connection in group._connections.values():
                assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
                assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == LIMIT_S * 1000


def _say(kind: PacketKind, greeting: Greeting) -> Callable[[socket.socket], None]:
    return lambda connection: send_packet(connection, kind, msgspec.msgpack.encode(greeting))


@pytest.mark.parametrize(
    "speak",
    [
        lambda connection: connection.sendall(b"GET / HTTP/1.1\r\n\r\n"),
        _say(PacketKind.GREETING, Greeting(1, b"0" * 32)),
        _say(PacketKind.GREETING, Greeting(1, b"")),
    ],
    ids=["no rank", "another token", "no token"],
)
def test_strangers_are_sent_away_and_the_rank_is_connected(speak: Callable[[socket.socket], None]) -> None:
    store = HashStore()
    with ThreadPoolExecutor(1) as threads:
        first = threads.submit(connected_group, Cut(0, 2), store, "127.0.0.1", LIMIT_S)
        port = int(store.get("rank 0").split()[0])
        with socket.create_connection(("127.0.0.1", port), LIMIT_S) as stranger:
            speak(stranger)
            assert _ends(stranger)
        groups = [connected_group(Cut(1, 2), store, "127.0.0.1", LIMIT_S), first.result(LIMIT_S)]
    assert_gathers(groups[::-1])


@pytest.mark.parametrize(("kind", "rank"), [(PacketKind.HELLO, 1), (PacketKind.GREETING, 0), (PacketKind.GREETING, 2)])
def test_a_rank_that_is_not_expected_is_sent_away(kind: PacketKind, rank: int) -> None:
    store = HashStore()
    with ThreadPoolExecutor(1) as threads:
        first = threads.submit(connected_group, Cut(0, 2), store, "127.0.0.1", LIMIT_S)
        port, token = int(store.get("rank 0").split()[0]), store.get(TOKEN_KEY)
        with socket.create_connection(("127.0.0.1", port), LIMIT_S) as stranger:
            send_packet(stranger, kind, msgspec.msgpack.encode(Greeting(rank, token)))
            assert _ends(stranger)
        groups = [connected_group(Cut(1, 2), store, "127.0.0.1", LIMIT_S), first.result(LIMIT_S)]
    assert_gathers(groups[::-1])


def _ends(connection: socket.socket) -> bool:
    """Return whether the other end closes the connection without a word."""
    try:
        return connection.recv(1) == b""
    except ConnectionResetError:
        return True


def test_a_rank_that_does_not_come_is_named() -> None:
    with pytest.raises(
        GroupEndedError, match=r"^the ranks cannot connect to each other: rank 1 did not come in 0.1 s$"
    ):
        connected_group(Cut(0, 2), HashStore(), "127.0.0.1", 0.1)


def test_a_lower_rank_that_does_not_come_is_one_line() -> None:
    store = HashStore()
    store.set(TOKEN_KEY, "0")
    with pytest.raises(GroupEndedError, match=r"^the ranks cannot connect to each other: .+") as caught:
        connected_group(Cut(1, 2), store, "127.0.0.1", 0.1)
    assert "\n" not in str(caught.value)


def test_a_port_at_which_nobody_listens_is_one_line() -> None:
    store = HashStore()
    store.set(TOKEN_KEY, "0")
    with socket.create_server(("127.0.0.1", 0)) as closed:
        store.set("rank 0", f"{closed.getsockname()[1]} 127.0.0.1")
    with pytest.raises(GroupEndedError, match=r"^the ranks cannot connect to each other: Connection refused$"):
        connected_group(Cut(1, 2), store, "127.0.0.1", LIMIT_S)


def test_an_address_of_another_host_is_one_line() -> None:
    with pytest.raises(GroupEndedError, match=r"^the ranks cannot connect to each other: Cannot assign requested"):
        connected_group(Cut(0, 2), HashStore(), "192.0.2.1", LIMIT_S)
