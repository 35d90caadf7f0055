"""Strangers at rank 0's port: bounded in number and time, and no rank waits for one of them."""

import logging
import select
import socket
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import msgspec
import pytest

from engine.config import EngineConfig
from engine.distributed.agreement import Hello, RankDescription
from engine.distributed.arrivals import HELLO_S, MAX_BYTES, MAX_STRANGERS, Guest
from engine.distributed.joining import join
from engine.distributed.packets import HEADER, PacketKind, receive_packet, send_packet
from engine.distributed.reception import MAX_FAULT_CHARS, MAX_FAULTS, Reception
from tests.support.conditions import LIMIT_S, wait_until

OWN = RankDescription("native.4-avx2", "0123")
HELLO = msgspec.msgpack.encode(Hello(1, 2, 2, "1"))
DESCRIBED = msgspec.msgpack.encode(OWN)


class Clock:
    """A clock that stands still."""

    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


@dataclass
class Port:
    """Rank 0 waits at a port for rank 1."""

    number: int
    reception: Reception
    clock: Clock
    waiting: "Future[list[Guest]]"
    config: EngineConfig

    def connect(self, stack: ExitStack, content: bytes = b"") -> socket.socket:
        connection = stack.enter_context(socket.create_connection(("127.0.0.1", self.number), LIMIT_S))
        connection.sendall(content)
        return connection

    def num_guests(self) -> int:
        return len(self.reception._guests)

    def let_rank_1_join(self) -> None:
        """Let the right rank join and expect that it is received."""
        own = msgspec.structs.replace(self.config, node_rank=1)
        connection = join(own, "1", lambda: None, LIMIT_S).connection
        with connection:
            send_packet(connection, PacketKind.DESCRIBED, msgspec.msgpack.encode(OWN))
            [guest] = self.waiting.result(LIMIT_S)
        assert guest.rank == 1


@contextmanager
def waiting_rank_0() -> Iterator[tuple[Port, ExitStack]]:
    with socket.create_server(("127.0.0.1", 0)) as listener, ThreadPoolExecutor(1) as threads, ExitStack() as stack:
        number, clock = listener.getsockname()[1], Clock()
        config = EngineConfig(model="/m", tensor_parallel_size=2, nnodes=2, master_addr="127.0.0.1", master_port=number)
        reception = Reception(listener, config, OWN, "1", clock)
        stack.callback(setattr, clock, "now_s", 1e9)  # a wait that still goes on ends
        yield Port(number, reception, clock, threads.submit(reception.wait, lambda: None, 3600.0), config), stack


def events_of(guest: Guest) -> int:
    """Return what poll() reports for a guest's connection."""
    poll = select.poll()
    poll.register(guest.connection, select.POLLIN | select.POLLRDHUP)
    return sum(event for _, event in poll.poll(0))


def is_closed(connection: socket.socket) -> bool:
    """Return whether the other end is closed; it has sent nothing."""
    connection.setblocking(False)
    try:
        return connection.recv(1) == b""
    except BlockingIOError:
        return False
    except ConnectionError:
        return True


@pytest.mark.parametrize(
    "content",
    [HEADER.pack(PacketKind.HELLO, len(HELLO))[:5], HEADER.pack(PacketKind.HELLO, MAX_BYTES) + b"x" * 100],
    ids=["half a header", "half a packet"],
)
def test_nobody_waits_for_the_rest_of_a_strangers_packet(content: bytes) -> None:
    with waiting_rank_0() as (port, stack):
        for _ in range(MAX_STRANGERS // 2):
            port.connect(stack, content)
        wait_until(lambda: port.num_guests() == MAX_STRANGERS // 2)
        port.let_rank_1_join()


def test_a_packet_may_come_byte_by_byte() -> None:
    with waiting_rank_0() as (port, stack):
        rank = port.connect(stack)
        rank.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in HEADER.pack(PacketKind.HELLO, len(HELLO)) + HELLO:
            rank.sendall(bytes([byte]))
        wait_until(lambda: [guest.rank for guest in port.reception._guests] == [1])
        send_packet(rank, PacketKind.DESCRIBED, msgspec.msgpack.encode(OWN))
        assert [guest.rank for guest in port.waiting.result(LIMIT_S)] == [1]


@pytest.mark.parametrize(
    ("last_words", "fault"),
    [
        (b"", ""),
        (HEADER.pack(PacketKind.DESCRIBED, len(DESCRIBED)) + DESCRIBED, ""),
        (HEADER.pack(PacketKind.FAILED, 3) + b"why", "rank 1 on 127.0.0.1 ended: why"),
    ],
    ids=["none", "described", "failed"],
)
def test_a_rank_that_ended_and_came_again_since_the_last_look_is_received(last_words: bytes, fault: str) -> None:
    config = EngineConfig(model="/m", tensor_parallel_size=2, nnodes=2)
    with socket.create_server(("127.0.0.1", 0)) as listener, ExitStack() as stack:
        reception = Reception(listener, config, OWN, "1")
        stack.callback(reception.close)
        before, again = (
            stack.enter_context(socket.create_connection(listener.getsockname(), LIMIT_S)) for _ in range(2)
        )
        send_packet(before, PacketKind.HELLO, HELLO)
        again.sendall(HEADER.pack(PacketKind.HELLO, len(HELLO)))
        while [(guest.rank, len(guest.received)) for guest in reception._guests] != [(1, 0), (None, HEADER.size)]:
            reception._guests.look(reception._hear)
        before.sendall(last_words)
        again.sendall(HELLO)
        receive_packet(before)
        before.close()
        first, second = reception._guests
        wait_until(lambda: bool(events_of(first) & select.POLLRDHUP and events_of(second)))
        reception._guests.look(reception._hear)
        assert [guest.rank for guest in reception._guests] == [1]
        answer = receive_packet(again)
        assert answer is not None and answer[0] is PacketKind.CONFIG
        assert reception._last_fault == fault


def test_of_too_many_silent_strangers_the_oldest_are_sent_away_and_the_rank_joins() -> None:
    with waiting_rank_0() as (port, stack):
        strangers = [port.connect(stack) for _ in range(MAX_STRANGERS + 8)]
        wait_until(lambda: all(is_closed(stranger) for stranger in strangers[:8]))
        assert port.num_guests() == MAX_STRANGERS
        assert not any(is_closed(stranger) for stranger in strangers[8:])
        port.let_rank_1_join()
        wait_until(lambda: all(is_closed(stranger) for stranger in strangers))


def test_a_stranger_that_says_nothing_is_sent_away_and_a_rank_may_take_longer() -> None:
    with waiting_rank_0() as (port, stack):
        rank, stranger = port.connect(stack), port.connect(stack, b"\x08")
        send_packet(rank, PacketKind.HELLO, HELLO)
        wait_until(lambda: [guest.rank for guest in port.reception._guests] == [1, None])
        port.clock.now_s = 0.9 * HELLO_S
        later = port.connect(stack)
        wait_until(lambda: port.num_guests() == 3)
        port.clock.now_s = HELLO_S
        wait_until(lambda: is_closed(stranger))
        assert not is_closed(later)
        port.clock.now_s = 100 * HELLO_S
        wait_until(lambda: is_closed(later))
        rank.setblocking(True)
        send_packet(rank, PacketKind.DESCRIBED, msgspec.msgpack.encode(OWN))
        assert [guest.rank for guest in port.waiting.result(LIMIT_S)] == [1]


def test_a_strangers_words_are_one_short_line_of_the_log_and_many_of_them_are_not_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    hostile = msgspec.msgpack.encode(Hello(1, 2, 2, "2\nERROR all is lost \x1b[31m" + "x" * 10_000))
    with caplog.at_level(logging.WARNING, "smoe.engine"), waiting_rank_0() as (port, stack):
        for _ in range(MAX_FAULTS + 5):
            with port.connect(stack) as stranger:
                send_packet(stranger, PacketKind.HELLO, hostile)
                while stranger.recv(1 << 16):
                    pass
        port.let_rank_1_join()
    assert len(caplog.messages) == MAX_FAULTS
    assert all(len(line) <= MAX_FAULT_CHARS and line.isprintable() for line in caplog.messages)
    assert caplog.messages[0].startswith("127.0.0.1 was refused: smoe 2 ERROR all is lost ?[31mx")
