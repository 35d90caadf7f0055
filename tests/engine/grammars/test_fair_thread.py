"""engine/grammars/fair_thread.py: turns by used time, on a fake clock."""

from concurrent.futures import wait
from threading import Event

import pytest

from engine.grammars.fair_thread import FairThread


class Work:
    """Work that takes time on a fake clock and notes its name."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.done: list[str] = []
        self.may_start = Event()

    def hold(self) -> None:
        assert self.may_start.wait(60)

    def take(self, name: str, seconds: float) -> None:
        self.now_s += seconds
        self.done.append(name)


def test_the_tenant_that_has_used_least_is_next() -> None:
    work = Work()
    thread = FairThread("test", clock=lambda: work.now_s)
    futures = [thread.submit(0, work.hold)]
    for name, tenant, seconds in [("a", 0, 5), ("b", 0, 5), ("c", 1, 2), ("d", 1, 2), ("e", 1, 2), ("f", 1, 2)]:
        futures.append(thread.submit(tenant, lambda name=name, seconds=seconds: work.take(name, seconds)))
    work.may_start.set()
    wait(futures, 60)
    assert work.done == ["a", "c", "d", "e", "b", "f"]


def test_an_error_and_a_cancelled_piece_stop_nothing() -> None:
    work = Work()
    thread = FairThread("test")
    held = thread.submit(0, work.hold)
    bad = thread.submit(0, lambda: 1 // 0)
    cancelled, good = thread.submit(0, lambda: 1), thread.submit(0, lambda: 2)
    assert cancelled.cancel()
    work.may_start.set()
    assert good.result(60) == 2 and held.result(60) is None
    with pytest.raises(ZeroDivisionError):
        bad.result(60)
