"""server/fairness/loop_turns.py: one turn in each iteration of the event loop, tenant by tenant."""

import asyncio
from collections.abc import Coroutine

import pytest

from server.fairness.loop_turns import LoopTurns

pytestmark = pytest.mark.anyio


async def worker(turns: LoopTurns, tenant: int, count: int, log: list[tuple[int, int]]) -> None:
    for _ in range(count):
        await turns.next(tenant)
        log.append((tenant, iteration[0]))


iteration = [0]


def count_iterations() -> None:
    iteration[0] += 1
    asyncio.get_running_loop().call_soon(count_iterations)


async def test_each_iteration_has_one_turn_at_most_and_tenants_alternate() -> None:
    iteration[0] = 0
    asyncio.get_running_loop().call_soon(count_iterations)
    turns, log = LoopTurns(), []
    await asyncio.gather(
        *(worker(turns, 0, 5, log) for _ in range(6)),
        worker(turns, 1, 5, log),
    )
    assert len(log) == 35
    numbers = [number for _, number in log]
    assert len(set(numbers)) == 35, "two turns in one iteration"
    places = [place for place, (tenant, _) in enumerate(log) if tenant == 1]
    assert places[-1] < 3 * 5 + 1, "a worker waits for more than two slices of the other tenant before each of its own"


def returns_at_once(wait: Coroutine[None, None, None]) -> bool:
    try:
        wait.send(None)
    except StopIteration:
        return True
    wait.close()
    return False


async def test_a_turn_is_free_when_nobody_waits() -> None:
    turns = LoopTurns()
    assert returns_at_once(turns.next(0))
    assert not returns_at_once(turns.next(0))
    for _ in range(3):
        await asyncio.sleep(0)
    assert returns_at_once(turns.next(0))


async def test_a_cancelled_wait_takes_no_turn() -> None:
    turns, log = LoopTurns(), []
    await turns.next(0)
    waiting = [asyncio.ensure_future(worker(turns, 0, 1, log)) for _ in range(3)]
    await asyncio.sleep(0)
    assert waiting[1].cancel()  # the first has its turn
    await asyncio.gather(*waiting, return_exceptions=True)
    assert len(log) == 2
