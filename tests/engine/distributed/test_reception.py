"""Rank 0 and the ranks of other hosts find each other and agree, or one line says why not."""

import logging
import socket
import struct
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

import msgspec
import pytest

from engine.config import EngineConfig
from engine.distributed.agreement import RankDescription
from engine.distributed.arrivals import Guest
from engine.distributed.host_ranks import listen
from engine.distributed.joining import TAKEN_S, Membership, join
from engine.distributed.keepalive import MAX_PROBE_S, SILENCE_S
from engine.distributed.packets import PacketKind, send_packet
from engine.distributed.reception import Reception
from engine.errors import EngineConfigError, EngineError, FatalEngineError
from tests.support.conditions import LIMIT_S, wait_until
from tests.support.ports import free_port

OWN = RankDescription("native.4-avx2", "0123")
CONFIG = EngineConfig(
    model="/first",
    tensor_parallel_size=3,
    nnodes=3,
    master_addr="127.0.0.1",
    threads=7,
    dtype="float32",
    group_timeout=7.0,
)
TAKEN = "rank 1 is there already: another host has the same --node-rank"


@dataclass
class _Group:
    """Rank 0 waits in a thread, and ranks join in others."""

    listener: socket.socket
    threads: ThreadPoolExecutor
    ports: list[int] = field(default_factory=list)
    now_s: float = 0.0  # on rank 0's clock

    def __post_init__(self) -> None:
        self.port = self.listener.getsockname()[1]
        config = msgspec.structs.replace(CONFIG, master_port=self.port)
        self.reception = Reception(self.listener, config, OWN, "1", lambda: self.now_s)

    def host(self, node_rank: int, **settings: object) -> EngineConfig:
        own = {"model": "/other", "threads": 2, "dtype": "auto", "node_rank": node_rank, "master_port": self.port}
        return msgspec.structs.replace(CONFIG, **{**own, **settings})

    def wait(self) -> "Future[list[Guest]]":
        return self.threads.submit(self.reception.wait, lambda: None, LIMIT_S)

    def join(
        self, config: EngineConfig, version: str = "1", own: RankDescription = OWN, taken_s: float = TAKEN_S
    ) -> "Future[Membership]":
        def run() -> Membership:
            membership = join(config, version, lambda: None, LIMIT_S, taken_s)
            self.ports.append(membership.describe(own, lambda: None))
            return membership

        return self.threads.submit(run)


@contextmanager
def _group() -> Iterator[_Group]:
    with socket.create_server(("127.0.0.1", 0)) as listener, ThreadPoolExecutor(8) as threads:
        group = _Group(listener, threads)
        try:
            yield group
        finally:
            group.now_s = 1e9  # a wait that still goes on ends
            group.reception.close()  # whoever still waits gets an end of file


def _complete(group: _Group, waiting: "Future[list[Guest]]") -> list[Guest]:
    guests = waiting.result(LIMIT_S)
    for guest in guests:
        send_packet(guest.connection, PacketKind.JOIN, (4321).to_bytes(4, "little"))
    return guests


def test_ranks_get_the_settings_of_rank_0_and_keep_what_belongs_to_their_host() -> None:
    with _group() as group:
        waiting = group.wait()
        ranks = [group.join(group.host(node)) for node in (2, 1)]
        assert [guest.rank for guest in _complete(group, waiting)] == [1, 2]
        for rank, node in zip(ranks, (2, 1), strict=True):
            config = rank.result(LIMIT_S).config
            assert config == group.host(node, dtype="float32")
        assert group.ports == [4321, 4321]


def test_a_rank_may_be_there_before_rank_0() -> None:
    early = msgspec.structs.replace(CONFIG, tensor_parallel_size=2, nnodes=2, node_rank=1, master_port=free_port())
    attempts: list[None] = []
    with ThreadPoolExecutor(2) as threads:
        rank = threads.submit(join, early, "1", lambda: attempts.append(None), LIMIT_S)
        wait_until(lambda: len(attempts) > 0)
        config = msgspec.structs.replace(early, node_rank=0)
        with listen(config) as listener:
            reception = Reception(listener, config, OWN, "1")
            waiting = threads.submit(reception.wait, lambda: None, LIMIT_S)
            membership = rank.result(LIMIT_S)
            send_packet(membership.connection, PacketKind.DESCRIBED, msgspec.msgpack.encode(OWN))
            assert [guest.rank for guest in waiting.result(LIMIT_S)] == [1]
            reception.close()
            membership.connection.close()


@pytest.mark.parametrize(
    ("settings", "version", "own", "reason"),
    [
        ({}, "2", OWN, r"^smoe 2 runs here and 1 on the host with --node-rank 0$"),
        (
            {"tensor_parallel_size": 6},
            "1",
            OWN,
            r"^--tensor-parallel-size 6 --nnodes 3 here, and --tensor-parallel-size 3 --nnodes 3 on the host",
        ),
        ({"node_rank": 7}, "1", OWN, r"^there is no rank 7$"),
        ({}, "1", RankDescription("native.4-amx", "0123"), r"^rank 1 computes with native.4-amx, rank 0 with native.4"),
        ({}, "1", RankDescription(OWN.numerics, "4567"), r"^rank 1 has another checkpoint than rank 0$"),
    ],
)
def test_a_rank_that_does_not_fit_is_refused_in_one_line_and_the_right_one_is_awaited(
    settings: dict[str, object], version: str, own: RankDescription, reason: str
) -> None:
    with _group() as group:
        waiting = group.wait()
        wrong = group.join(group.host(**{"node_rank": 1, **settings}), version, own)
        with pytest.raises(EngineConfigError, match=reason):
            wrong.result(LIMIT_S)
        ranks = [group.join(group.host(node)) for node in (1, 2)]
        assert len(_complete(group, waiting)) == 2
        assert all(rank.result(LIMIT_S) for rank in ranks)


def test_two_hosts_with_one_number_are_refused() -> None:
    with _group() as group:
        waiting = group.wait()
        first = group.join(group.host(1))
        wait_until(lambda: any(guest.is_present for guest in group.reception._guests))
        with pytest.raises(EngineConfigError, match=f"^{TAKEN}$"):
            group.join(group.host(1), taken_s=0.0).result(LIMIT_S)
        second = group.join(group.host(2))
        assert len(_complete(group, waiting)) == 2
        assert first.result(LIMIT_S).config.rank == 1 and second.result(LIMIT_S).config.rank == 2


@pytest.mark.parametrize(
    "words",
    [b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", b"\x08\0\0\0\x03\0\0\0\0\0\0\0abc", b"\x09\0\0\0\0\0\0\0\0\0\0\0", b""],
    ids=["http", "no hello", "described first", "nothing"],
)
def test_whoever_is_no_rank_is_sent_away(words: bytes) -> None:
    with _group() as group:
        waiting = group.wait()
        stranger = socket.create_connection(("127.0.0.1", group.port), LIMIT_S)
        with stranger, suppress(OSError):  # the other end may be closed before its last word is sent
            stranger.sendall(words)
            stranger.shutdown(socket.SHUT_WR)
            while stranger.recv(1024):
                pass
        ranks = [group.join(group.host(node)) for node in (1, 2)]
        assert len(_complete(group, waiting)) == 2
        assert all(rank.result(LIMIT_S) for rank in ranks)


def test_a_rank_that_ends_while_others_are_awaited_may_come_again() -> None:
    with _group() as group:
        waiting = group.wait()
        config = group.host(1)
        join(config, "1", lambda: None, LIMIT_S).connection.close()
        wait_until(lambda: not group.reception._guests)
        ranks = [group.join(group.host(node)) for node in (1, 2)]
        assert len(_complete(group, waiting)) == 2
        assert all(rank.result(LIMIT_S) for rank in ranks)


def test_a_rank_asks_again_until_its_dead_connection_is_dropped(caplog: pytest.LogCaptureFixture) -> None:
    """As after a loss of power: rank 0 still has the connection from before."""
    with caplog.at_level(logging.WARNING, "smoe.engine"), _group() as group:
        waiting = group.wait()
        dead = join(group.host(1), "1", lambda: None, LIMIT_S).connection
        refusals: list[None] = []

        def on_wait() -> None:
            refusals.append(None)
            if len(refusals) == 2:
                dead.close()  # as the kernel of rank 0's host does after SILENCE_S

        with join(group.host(1), "1", on_wait, LIMIT_S).connection as connection:
            send_packet(connection, PacketKind.DESCRIBED, msgspec.msgpack.encode(OWN))
            other = group.join(group.host(2))
            assert [guest.rank for guest in _complete(group, waiting)] == [1, 2]
            assert other.result(LIMIT_S)
    assert len(refusals) == 2
    assert caplog.messages == [f"127.0.0.1 was refused: {TAKEN}"]  # once, although it asked twice


def test_both_hosts_notice_that_the_other_one_is_gone_while_ranks_are_awaited() -> None:
    with _group() as group:
        waiting = group.wait()
        with join(group.host(1), "1", lambda: None, LIMIT_S).connection as connection:
            [guest] = group.reception._guests
            assert [_silence_s(end) for end in (connection, guest.connection)] == [SILENCE_S, SILENCE_S]
        ranks = [group.join(group.host(node)) for node in (1, 2)]
        _complete(group, waiting)
        assert [_silence_s(rank.result(LIMIT_S).connection) for rank in ranks] == [CONFIG.group_timeout] * 2


def _silence_s(connection: socket.socket) -> float:
    """Return after how many seconds without an answer a connection fails, even if it is idle."""
    assert connection.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
    silence_s = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) / 1000
    probe_s = [connection.getsockopt(socket.IPPROTO_TCP, name) for name in (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL)]
    assert sum(probe_s) <= silence_s
    return silence_s


def test_a_rank_asks_for_longer_than_rank_0_keeps_a_dead_connection() -> None:
    assert TAKEN_S > SILENCE_S + MAX_PROBE_S


def test_a_lost_rank_0_is_one_line_for_a_rank_that_waits_for_others() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        connection = socket.create_connection(listener.getsockname(), LIMIT_S)
        rank_0, _ = listener.accept()
        rank_0.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # an error, not an end
        with connection, pytest.raises(FatalEngineError, match=r"^rank 0 was lost before the group was complete: \w"):
            Membership(connection, CONFIG).describe(OWN, rank_0.close)


def test_ranks_that_do_not_come_are_named_and_may_come_after_a_restart() -> None:
    with _group() as group, pytest.raises(FatalEngineError, match=r"^ranks 1, 2 did not come in 0 s$"):
        group.reception.wait(lambda: setattr(group, "now_s", 1.0), 0.0)


@pytest.mark.parametrize(("then_joins", "error"), [(False, EngineConfigError), (True, FatalEngineError)])
@pytest.mark.parametrize(
    ("version", "own", "fault"),
    [("2", OWN, "smoe 2 runs here"), ("1", RankDescription(OWN.numerics, "4567"), "rank 1 has another checkpoint")],
    ids=["version", "checkpoint"],
)
def test_a_wait_in_vain_is_a_wrong_setting_only_if_the_last_fault_was_one(
    version: str, own: RankDescription, fault: str, then_joins: bool, error: type[EngineError]
) -> None:
    with _group() as group:
        waiting = group.wait()
        with pytest.raises(EngineConfigError):
            group.join(group.host(1), version, own).result(LIMIT_S)
        if then_joins:
            group.join(group.host(1))
            wait_until(lambda: [guest.is_present for guest in group.reception._guests] == [True])
        group.now_s = 2 * LIMIT_S
        with pytest.raises(error, match=rf"did not come in 120 s; 127\.0\.0\.1 was refused: {fault}"):
            waiting.result(LIMIT_S)


def test_a_rank_without_rank_0_gives_up_in_one_line_and_may_find_it_after_a_restart() -> None:
    port = free_port()
    config = msgspec.structs.replace(CONFIG, node_rank=1, master_port=port)
    with pytest.raises(FatalEngineError, match=rf"^--master-addr 127.0.0.1 --master-port {port}: rank 0 did not come"):
        join(config, "1", lambda: None, 0.0)


def test_an_address_that_cannot_be_one_is_a_wrong_setting_of_a_rank_too() -> None:
    config = msgspec.structs.replace(CONFIG, node_rank=1, master_addr="a..b")
    with pytest.raises(EngineConfigError, match=r"^--master-addr a\.\.b --master-port \d+: rank 0 did not come in 0 s"):
        join(config, "1", lambda: None, 0.0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"master_addr": "203.0.113.7"}, r"^--master-addr 203.0.113.7: the host with --node-rank 0 does not have that"),
        ({"master_addr": "a..b"}, r"^--master-addr a..b: this name has no address$"),
    ],
)
def test_an_address_that_rank_0_cannot_have_is_one_line(settings: dict[str, object], message: str) -> None:
    with pytest.raises(EngineConfigError, match=message):
        listen(msgspec.structs.replace(CONFIG, **settings))


def test_a_port_that_is_taken_is_one_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(EngineConfigError, match=rf"^--master-port {port}: already in use on 127.0.0.1$"):
            listen(msgspec.structs.replace(CONFIG, master_port=port))


def test_a_fault_of_a_host_is_told_when_nobody_else_comes() -> None:
    with _group() as group, ThreadPoolExecutor(1) as thread:
        is_told = []
        waiting = thread.submit(group.reception.wait, lambda: None, LIMIT_S)
        membership = join(group.host(1), "1", lambda: None, LIMIT_S)
        send_packet(membership.connection, PacketKind.FAILED, b"no weights")
        wait_until(lambda: bool(group.reception._last_fault))
        is_told.append(group.reception._explain([1], 600.0))
        ranks = [group.join(group.host(node)) for node in (1, 2)]
        assert len(_complete(group, waiting)) == 2 and all(rank.result(LIMIT_S) for rank in ranks)
        membership.connection.close()
    assert is_told == ["rank 1 did not come in 600 s; rank 1 on 127.0.0.1 ended: no weights"]


def test_a_rank_of_this_host_that_ends_before_it_joins_ends_the_wait_with_its_reason() -> None:
    with _group() as group:
        ended: dict[int, str] = {}
        waiting = group.threads.submit(group.reception.wait, lambda: None, LIMIT_S, lambda: ended)
        with join(group.host(1), "1", lambda: None, LIMIT_S).connection as connection:
            ended[1] = "rank 1 exited with 2"  # before its last words are heard
            send_packet(connection, PacketKind.FAILED, b"no such file")
        with pytest.raises(EngineConfigError, match=r"^rank 1 on 127\.0\.0\.1 ended: no such file$"):
            waiting.result(LIMIT_S)


def test_a_rank_of_this_host_that_ends_without_a_word_ends_the_wait_and_a_restart_may_help() -> None:
    with _group() as group, pytest.raises(FatalEngineError, match=r"^rank 1 was killed by signal 9$"):
        group.reception.wait(lambda: None, LIMIT_S, lambda: {1: "rank 1 was killed by signal 9"})
