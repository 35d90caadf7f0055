"""server/fairness/refusal_pace.py, on a clock of its own."""

import pytest

from server.fairness.refusal_pace import DELAY_S, FREE_PER_S, RefusalPace

pytestmark = pytest.mark.anyio


class Time:
    """A clock, and the sleeps that were asked for."""

    def __init__(self) -> None:
        self.now_s = 100.0
        self.slept_s: list[float] = []

    def clock(self) -> float:
        return self.now_s

    async def sleep(self, seconds: float) -> None:
        self.slept_s.append(seconds)


def paced(num_tenants: int = 2) -> tuple[RefusalPace, Time]:
    time = Time()
    return RefusalPace(num_tenants, time.clock, time.sleep), time


async def test_the_first_refusals_of_a_second_are_sent_at_once_and_the_others_later() -> None:
    pace, time = paced()
    for _ in range(FREE_PER_S):
        await pace.wait(0)
    assert time.slept_s == []
    for _ in range(3):
        await pace.wait(0)
    assert time.slept_s == [DELAY_S] * 3


async def test_a_key_waits_for_its_own_refusals_only() -> None:
    pace, time = paced()
    for _ in range(FREE_PER_S + 1):
        await pace.wait(0)
    await pace.wait(1)
    assert time.slept_s == [DELAY_S]


async def test_each_second_begins_anew() -> None:
    pace, time = paced()
    for _ in range(3):
        for _ in range(FREE_PER_S):
            await pace.wait(0)
        time.now_s += 1.0
    assert time.slept_s == []
    for _ in range(FREE_PER_S):
        await pace.wait(0)
    time.now_s += 0.9
    await pace.wait(0)
    assert time.slept_s == [DELAY_S]


async def test_with_one_key_nothing_is_delayed() -> None:
    pace, time = paced(num_tenants=1)
    for _ in range(10 * FREE_PER_S):
        await pace.wait(0)
    assert time.slept_s == []
