"""server/http/limits/read_limiter.py: a limited number of reads per iteration of the event loop, in order."""

import asyncio
import itertools
from functools import partial

import pytest

from server.http.limits.read_limiter import ReadLimiter

pytestmark = pytest.mark.anyio


async def test_each_iteration_of_the_loop_allows_a_limited_number_of_reads_in_order() -> None:
    order: list[int] = []
    iterations: list[int] = []
    limiter = ReadLimiter(max_reads=16)
    for number in range(100):
        if limiter.try_acquire():
            order.append(number)
        else:
            limiter.defer(partial(order.append, number))
    while len(order) < 100:
        iterations.append(len(order))
        await asyncio.sleep(0)
    assert order == list(range(100))
    assert max(after - before for before, after in itertools.pairwise(iterations)) == 16
    await asyncio.sleep(0)
    assert limiter.try_acquire()


async def test_a_read_waits_for_at_most_one_deferred_read_of_each_other_tenant() -> None:
    order: list[tuple[int | None, int]] = []
    limiter = ReadLimiter(max_reads=1)
    assert limiter.try_acquire()
    for tenant, count in ((0, 50), (None, 50), (1, 2)):
        for number in range(count):
            limiter.defer(partial(order.append, (tenant, number)), tenant)
    for _ in range(102):
        await asyncio.sleep(0)
    assert len(order) == 102
    assert order[:6] == [(0, 0), (None, 0), (1, 0), (0, 1), (None, 1), (1, 1)]
    assert [number for tenant, number in order if tenant == 0] == list(range(50))
