"""server/sandbox/fair_turns.py: the tenant that has used least is next, whatever the others have queued."""

import asyncio
from typing import Any, cast

import pytest

from server.sandbox.errors import Crashed, SandboxFull
from server.sandbox.fair_turns import FairTurns

pytestmark = pytest.mark.anyio

WORKER: Any = cast(Any, object())


def anyone(tenant: int) -> bool:
    return True


async def test_the_tenant_that_used_least_is_next() -> None:
    turns = FairTurns(100, 100)
    for tenant in (0, 0, 0, 1, 1):
        turns.join(tenant)
    order = []
    while (tenant := turns.give_turn(WORKER, anyone)) is not None:
        order.append(tenant)
        turns.charge(tenant, 1.0)
    assert order == [0, 1, 0, 1, 0]


async def test_a_tenant_that_was_away_does_not_catch_up() -> None:
    turns = FairTurns(100, 100)
    for _ in range(10):
        turns.join(0)
        turns.give_turn(WORKER, anyone)
        turns.charge(0, 1.0)
    for tenant in (0, 1, 0, 1, 0, 1, 0, 1):
        turns.join(tenant)
    order = []
    while (tenant := turns.give_turn(WORKER, anyone)) is not None:
        order.append(tenant)
        turns.charge(tenant, 1.0)
    assert order[:4].count(0) >= 1


async def test_a_cancelled_wait_gets_no_turn() -> None:
    turns = FairTurns(100, 100)
    first, second = turns.join(0), turns.join(0)
    first.cancel()
    assert turns.give_turn(WORKER, anyone) == 0
    assert second.result() is WORKER and turns.give_turn(WORKER, anyone) is None


async def test_a_tenant_that_may_not_run_is_passed_over() -> None:
    turns = FairTurns(100, 100)
    turns.join(0)
    turns.join(1)
    assert turns.give_turn(WORKER, lambda tenant: tenant != 0) == 1
    assert turns.give_turn(WORKER, lambda tenant: tenant != 0) is None


async def test_one_tenant_cannot_take_all_places() -> None:
    turns = FairTurns(4, 2)
    turns.join(0)
    turns.join(0)
    with pytest.raises(SandboxFull):
        turns.join(0)
    turns.join(1)
    turns.join(2)
    with pytest.raises(SandboxFull):
        turns.join(3)


async def test_the_end_of_the_pool_ends_every_wait() -> None:
    turns = FairTurns(4, 4)
    waits = [turns.join(0), turns.join(1)]
    turns.fail_all(Crashed("closed"))
    assert [type(end) for end in await asyncio.gather(*waits, return_exceptions=True)] == [Crashed, Crashed]
    assert len(turns) == 0
