"""Ranks as threads of one process: they share memory as processes do, and calls of the library drop Python's lock."""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

from torch.distributed import HashStore

from engine.distributed.gloo_group import GlooGroup
from model.cut import all_cuts
from model.group import Group
from model.ops.native.group import SharedGroup, shared_bytes
from tests.support.conditions import LIMIT_S
from tests.support.native_cases import LIBRARY

Rank = TypeVar("Rank", bound=Group)
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
def gloo_groups(size: int, timeout_s: float = LIMIT_S) -> Iterator[list[GlooGroup]]:
    """Connect the group of each rank over the loopback interface."""
    store = HashStore()
    with ThreadPoolExecutor(size) as threads:
        groups = list(threads.map(lambda cut: GlooGroup(cut, store, "127.0.0.1", timeout_s), all_cuts(size)))
    yield groups


def on_each_rank(groups: Sequence[Rank], body: Callable[[Rank], Result]) -> list[Result]:
    """Run `body` for all ranks at once; if one fails, the others over shared memory fail too instead of waiting."""

    def run(group: Rank) -> Result:
        try:
            return body(group)
        except BaseException:
            if isinstance(group, SharedGroup):
                group.end()
            raise

    with ThreadPoolExecutor(len(groups)) as threads:
        return list(threads.map(run, groups))
