"""server/http/read_limiter.py: a limited number of reads per iteration of the event loop, in order."""

import asyncio
import itertools
from functools import partial

import pytest

from server.http.read_limiter import ReadLimiter

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
