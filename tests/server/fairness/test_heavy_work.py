"""server/fairness/heavy_work.py: turns between tenants. Work is held by events, so no test depends on speed."""

import asyncio
import threading
from collections.abc import Callable

import pytest

from server.errors import ApiError
from server.fairness.event_loop import INLINE_CHARS
from server.fairness.heavy_work import CHARS_PER_TOKEN, HeavyWork

pytestmark = pytest.mark.anyio

SIZE = INLINE_CHARS + 1
LIMIT_S = 60.0


class Held:
    """Work that notes its name when it starts, and ends when it may."""

    def __init__(self) -> None:
        self.started: list[str] = []
        self.may_end = threading.Event()

    def work(self, name: str) -> Callable[[], str]:
        def run() -> str:
            self.started.append(name)
            assert self.may_end.wait(LIMIT_S)
            return name

        return run


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(LIMIT_S):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.001)


async def test_light_work_runs_in_the_caller() -> None:
    heavy = HeavyWork()
    assert await heavy.run(threading.get_ident, size=INLINE_CHARS, tenant=0) == threading.get_ident()
    assert await heavy.run(threading.get_ident, size=SIZE, tenant=0) != threading.get_ident()


async def test_tenants_take_turns_and_none_has_all_threads() -> None:
    heavy, held = HeavyWork(num_tenants=2), Held()
    greedy = [asyncio.ensure_future(heavy.run(held.work(f"a{n}"), size=SIZE, tenant=0)) for n in range(4)]
    await until(lambda: bool(held.started))
    other = [asyncio.ensure_future(heavy.run(held.work(f"b{n}"), size=SIZE, tenant=1)) for n in range(2)]
    await until(lambda: len(held.started) == 2)
    assert held.started == ["a0", "b0"]
    held.may_end.set()
    assert await asyncio.gather(*greedy, *other) == ["a0", "a1", "a2", "a3", "b0", "b1"]
    assert sorted(held.started) == ["a0", "a1", "a2", "a3", "b0", "b1"]


async def test_too_much_waiting_work_of_a_tenant_is_refused() -> None:
    heavy, held = HeavyWork(num_tenants=2, max_waiting=8), Held()
    accepted = [asyncio.ensure_future(heavy.run(held.work("a"), size=SIZE, tenant=0)) for _ in range(8)]
    await until(lambda: bool(held.started))
    with pytest.raises(ApiError) as caught:
        await heavy.run(held.work("a"), size=SIZE, tenant=0)
    assert (caught.value.status, caught.value.code) == (429, "text_queue_full")
    other = asyncio.ensure_future(heavy.run(held.work("b"), size=SIZE, tenant=1))
    held.may_end.set()
    await asyncio.gather(*accepted, other)


async def test_cancelled_work_gives_up_its_turn() -> None:
    heavy, held = HeavyWork(num_threads=1), Held()
    tasks = [asyncio.ensure_future(heavy.run(held.work(str(n)), size=SIZE, tenant=0)) for n in range(3)]
    await until(lambda: held.started == ["0"])
    tasks[0].cancel()
    tasks[1].cancel()
    await asyncio.gather(*tasks[:2], return_exceptions=True)
    assert held.started == ["0"], "its thread still works"
    held.may_end.set()
    assert await tasks[2] == "2"
    assert held.started == ["0", "2"]


async def test_who_leaves_the_queue_takes_no_place_from_others() -> None:
    heavy, held = HeavyWork(num_threads=1, max_waiting=2), Held()

    def submitted() -> asyncio.Future[str]:
        return asyncio.ensure_future(heavy.run(held.work("a"), size=SIZE, tenant=0))

    running = submitted()
    await until(lambda: bool(held.started))
    for _ in range(3):
        left = [submitted(), submitted()]
        await asyncio.sleep(0)  # both wait now
        for task in left:
            task.cancel()
        results = await asyncio.gather(*left, return_exceptions=True)
        assert all(isinstance(result, asyncio.CancelledError) for result in results)
    waiting = submitted()
    held.may_end.set()
    assert await asyncio.gather(running, waiting) == ["a", "a"]


async def test_what_was_done_is_owed_once_in_tokens() -> None:
    heavy = HeavyWork()
    await heavy.run(lambda: None, size=10 * CHARS_PER_TOKEN + SIZE, tenant=3)
    assert heavy.pop_owed_tokens(3) == (10 * CHARS_PER_TOKEN + SIZE) // CHARS_PER_TOKEN
    assert heavy.pop_owed_tokens(3) == heavy.pop_owed_tokens(0) == 0
    with pytest.raises(ZeroDivisionError):
        await heavy.run(lambda: 1 // 0, size=SIZE, tenant=0)
