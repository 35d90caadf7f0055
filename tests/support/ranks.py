"""Ranks as threads of one process: they share memory as processes do, and calls of the library drop Python's lock."""

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

from model.cut import all_cuts
from model.ops.native.group import SharedGroup, shared_bytes
from tests.support.native_cases import LIBRARY

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


def on_each_rank(groups: list[SharedGroup], body: Callable[[SharedGroup], Result]) -> list[Result]:
    """Run `body` for all ranks at once; if one fails, the others fail too instead of waiting for it."""

    def run(group: SharedGroup) -> Result:
        try:
            return body(group)
        except BaseException:
            group.end()
            raise

    with ThreadPoolExecutor(len(groups)) as threads:
        return list(threads.map(run, groups))
