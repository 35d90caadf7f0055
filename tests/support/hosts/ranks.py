"""Ranks as threads of one process: they share memory as processes do, and calls of the library drop Python's lock."""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

from torch.distributed import HashStore

from engine.distributed.mesh import connected_group
from model.cut import all_cuts
from model.ops.native.group import SharedGroup, SocketGroup, shared_bytes
from tests.support.conditions import LIMIT_S
from tests.support.kernels.native_cases import LIBRARY

Rank = TypeVar("Rank")
Result = TypeVar("Result")


@contextmanager
def shared_groups(size: int, buffer_bytes: int = 1 << 16) -> Iterator[list[SharedGroup]]:
    """Create the group of each rank over one piece of memory; it ends with the block."""
    fd = os.memfd_create("test-group")
    try:
        os.truncate(fd, shared_bytes(LIBRARY, size, buffer_bytes))
        groups = [SharedGroup(LIBRARY, cut, fd, buffer_bytes) for cut in all_cuts(size)]
    finally:
        os.close(fd)
    try:
        yield groups
    finally:
        groups[0].end()


@contextmanager
def socket_groups(size: int, address: str = "127.0.0.1", timeout_s: float = LIMIT_S) -> Iterator[list[SocketGroup]]:
    """Connect the group of each rank over a network, by default the loopback interface; they end with the block."""
    store = HashStore()
    with ThreadPoolExecutor(size) as threads:
        groups = list(threads.map(lambda cut: connected_group(cut, store, address, timeout_s), all_cuts(size)))
    try:
        yield groups
    finally:
        for group in groups:
            group.end()


def on_each_rank(groups: Sequence[Rank], body: Callable[[Rank], Result]) -> list[Result]:
    """Run `body` for all ranks at once, with the group or network of each; if one fails, the others fail too."""

    def run(group: Rank) -> Result:
        try:
            return body(group)
        except BaseException:
            if isinstance(group, SharedGroup | SocketGroup):
                group.end()
            raise

    with ThreadPoolExecutor(len(groups)) as threads:
        return list(threads.map(run, groups))
