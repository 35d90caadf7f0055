"""Gathers of ranks over sockets, inside the library."""

import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import combinations

import pytest
import torch
from torch import Tensor

from model.cut import all_cuts
from model.group import GroupEndedError
from model.ops.native.group import SocketGroup
from tests.support.conditions import LIMIT_S, wait_until
from tests.support.hosts.ranks import on_each_rank
from tests.support.kernels.native_cases import LIBRARY

WIDTH, UNIT = 200, 32  # uneven parts
SEND_BUFFER_BYTES = 4096  # of a socket; a gather of many rows is much larger


@contextmanager
def paired_groups(size: int) -> Iterator[list[SocketGroup]]:
    """Create the group of each rank over socket pairs."""
    with ExitStack() as stack:
        ends: list[dict[int, socket.socket]] = [{} for _ in range(size)]
        for first, second in combinations(range(size), 2):
            pair = socket.socketpair()
            for rank, other, end in zip((first, second), (second, first), pair, strict=True):
                end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
                ends[rank][other] = stack.enter_context(end)
        yield [SocketGroup(LIBRARY, cut, ends[cut.rank], LIMIT_S) for cut in all_cuts(size)]


def own_part(group: SocketGroup, whole: Tensor) -> Tensor:
    columns = group.cut.part(whole.shape[1], UNIT)
    return whole[:, columns.start : columns.stop]


@pytest.mark.parametrize("size", [2, 3, 4])
def test_each_rank_gets_the_columns_of_all(size: int) -> None:
    """One row, none, some, and so many that neither rank can send all before it receives."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(1, torch.float32), (0, torch.float32), (7, torch.bfloat16), (500, torch.float32), (90, torch.bfloat16)]
    wholes = [torch.randn(rows, WIDTH, generator=generator).to(dtype) for rows, dtype in shapes]

    def gather_all(group: SocketGroup) -> list[Tensor]:
        return [group.gather(own_part(group, whole), WIDTH, UNIT) for whole in wholes * 5]

    with paired_groups(size) as groups:
        for gathered in on_each_rank(groups, gather_all):
            assert all(torch.equal(ours, whole) for ours, whole in zip(gathered, wholes * 5, strict=True))


def test_a_rank_may_be_two_gathers_ahead() -> None:
    """Rank 0 gathers twice before rank 1 does, which has only sent its parts."""
    wholes = [torch.arange(WIDTH).float()[None], -torch.arange(2 * WIDTH).float().view(2, WIDTH)]
    with paired_groups(2) as groups:
        late = groups[1]
        for whole in wholes:
            late._connections[0].sendall(own_part(late, whole).contiguous().numpy().tobytes())
        for whole in wholes:
            assert torch.equal(groups[0].gather(own_part(groups[0], whole), WIDTH, UNIT), whole)
        gathered = [late.gather(own_part(late, whole), WIDTH, UNIT) for whole in wholes]
        assert all(torch.equal(ours, whole) for ours, whole in zip(gathered, wholes, strict=True))


def test_a_rank_that_does_not_answer_is_named() -> None:
    with paired_groups(3) as groups:
        groups[0].timeout_s = 0.2
        part = torch.zeros(1, 64)
        groups[1]._connections[0].sendall(part.numpy().tobytes())
        with pytest.raises(GroupEndedError, match=r"^rank 2 did not answer for 0.2 s$"):
            groups[0].gather(part, 192, 64)


def test_a_rank_that_receives_nothing_is_named() -> None:
    with paired_groups(2) as groups:
        groups[0].timeout_s = 0.2
        part = torch.zeros(1, 1 << 20)
        with pytest.raises(GroupEndedError, match=r"^rank 1 did not answer for 0.2 s$"):
            groups[0].gather(part, 2 << 20, 1 << 20)


def test_a_rank_that_is_gone_is_named() -> None:
    with paired_groups(3) as groups:
        groups[2].end()
        with pytest.raises(GroupEndedError, match=r"^the connection to rank 2 broke$"):
            groups[0].gather(torch.zeros(1, 64), 192, 64)
        with pytest.raises(GroupEndedError, match=r"^the connection to rank 0 broke$"):  # which could not go on
            groups[1].gather(torch.zeros(1, 64), 192, 64)


def test_the_end_of_a_group_reaches_a_rank_that_waits() -> None:
    errors = []

    def gather() -> None:
        try:
            groups[0].gather(torch.zeros(1, 32), 64, 32)
        except GroupEndedError as error:
            errors.append(str(error))

    with paired_groups(2) as groups:
        waiting = threading.Thread(target=gather)
        waiting.start()
        other = groups[1]._connections[0]
        wait_until(lambda: len(other.recv(128, socket.MSG_PEEK)) == 128)  # rank 0 has sent its part
        groups[1].end()
        waiting.join(LIMIT_S)
        assert errors == ["the connection to rank 1 broke"]
