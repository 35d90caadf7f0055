"""engine/grammars/parser_places.py: work with places, on a thread that runs it at once."""

import weakref
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import pytest

from engine.grammars.parser_places import ParserPlaces, Place


class Inline:
    """FairThread that runs work in submit(), or keeps it until run()."""

    def __init__(self, *, is_busy: bool = False) -> None:
        self.is_busy = is_busy
        self.kept: list[Callable[[], object]] = []

    def submit(self, tenant: int, work: Callable[[], Any]) -> "Future[Any]":
        future: Future[Any] = Future()
        self.kept.append(work)
        if not self.is_busy:
            self.run()
        return future

    def run(self) -> None:
        while self.kept:
            self.kept.pop(0)()


def places(num_places: int, thread: Inline | None = None, num_tenants: int = 1) -> ParserPlaces:
    return ParserPlaces(num_places, thread or Inline(), num_tenants)  # type: ignore[arg-type]


def keep(place: Place) -> Place:
    return place


def test_work_waits_for_a_place_that_an_earlier_result_holds() -> None:
    bounded = places(2)
    first, second, third = (bounded.submit(0, keep) for _ in range(3))
    bounded.give_out()
    assert first.done() and second.done() and not third.done()
    del first
    assert not third.done(), "places are given out by give_out() alone, on the caller's thread"
    bounded.give_out()
    assert third.done()


def test_work_that_fails_or_keeps_nothing_frees_its_place() -> None:
    bounded = places(1)

    def fail(place: Place) -> None:
        raise KeyboardInterrupt

    failed, empty, last = bounded.submit(0, fail), bounded.submit(0, lambda place: None), bounded.submit(0, keep)
    assert isinstance(failed.exception(), KeyboardInterrupt)
    bounded.give_out()
    assert empty.done()
    bounded.give_out()
    assert last.done()


def test_cancelled_work_never_starts_and_takes_no_place() -> None:
    thread = Inline(is_busy=True)
    bounded = places(2, thread)
    started, queued, waiting = (bounded.submit(0, keep) for _ in range(3))
    assert bounded.cancel(0, queued) and bounded.cancel(0, waiting)
    thread.run()
    other = bounded.submit(0, keep)
    thread.run()
    assert started.done() and other.done()


def test_cancelled_work_that_waits_for_a_place_is_dropped_at_once() -> None:
    class Grammar:
        """Something that only the work holds."""

    bounded, text = places(1), Grammar()
    held, kept_text = bounded.submit(0, keep), weakref.ref(text)
    waiting, behind = bounded.submit(0, lambda place, text=text: place), bounded.submit(0, keep)  # type: ignore[misc]
    del text
    assert bounded.cancel(0, waiting) and kept_text() is None
    assert not bounded.cancel(0, held), "it has started"
    del held
    bounded.give_out()
    assert behind.done() and waiting.cancelled()


def num_held(bounded: ParserPlaces, tenant: int, held: list[object]) -> int:
    """Let the tenant take all places that it gets, and return their number."""
    futures = [bounded.submit(tenant, keep) for _ in range(100)]
    held += futures
    return sum(future.done() for future in futures)


@pytest.mark.parametrize(("num_places", "most"), [(16, 14), (8, 7), (3, 2), (2, 1), (1, 1)])
def test_one_of_two_tenants_leaves_places_to_the_other_and_a_single_one_has_all(num_places: int, most: int) -> None:
    held: list[object] = []
    assert num_held(places(num_places), 0, held) == num_places
    bounded = places(num_places, num_tenants=2)
    assert [num_held(bounded, tenant, held) for tenant in (0, 1)] == [most, num_places - most]


@pytest.mark.parametrize(
    ("num_places", "num_tenants", "expected"),
    [
        (64, 3, [56, 7, 1]),
        (64, 100, [33, *[1] * 31]),  # 32 of 100 tenants get one at once
        (8, 3, [6, 1, 1]),
        (5, 5, [3, 1, 1, 0, 0]),  # few places: three tenants get one at once, and one of them may have more
        (3, 3, [1, 1, 1]),
        (2, 3, [1, 1, 0]),
        (1, 3, [1, 0, 0]),
    ],
)
def test_a_place_is_kept_for_the_next_tenant_whatever_the_others_hold(
    num_places: int, num_tenants: int, expected: list[int]
) -> None:
    held: list[object] = []
    bounded = places(num_places, num_tenants=num_tenants)
    assert [num_held(bounded, tenant, held) for tenant in range(len(expected))] == expected


def test_a_place_that_is_kept_is_kept_again_when_its_tenant_has_ended() -> None:
    bounded, held = places(5, num_tenants=3), []  # type: ignore[var-annotated]
    assert num_held(bounded, 0, held) == 3
    first = bounded.submit(1, keep)
    assert first.done() and not bounded.submit(1, keep).done()
    del first
    bounded.give_out()
    assert not bounded.submit(0, keep).done()
    assert bounded.submit(2, keep).done() and bounded.submit(1, keep).done()


def test_a_free_place_goes_to_the_tenant_that_holds_the_fewest() -> None:
    bounded = places(4)
    held = [bounded.submit(tenant, keep) for tenant in (0, 0, 0, 1)]
    first, second = bounded.submit(0, keep), bounded.submit(1, keep)
    assert not first.done() and not second.done()
    held.pop(0)
    bounded.give_out()
    assert second.done() and not first.done()
