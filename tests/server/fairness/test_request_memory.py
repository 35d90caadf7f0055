"""server/fairness/request_memory.py on a clock of its own: who waits, who is refused, who makes room."""

import asyncio
from collections.abc import Iterator

import pytest

from server.errors import ApiError
from server.fairness import request_memory
from server.fairness.request_memory import IDLE_S, PAUSE_S, Lease, RequestMemory, parsed_bytes

pytestmark = pytest.mark.anyio

LIMIT = 8 * 100_000  # 700,000 for large bodies


class Clock:
    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture(autouse=True)
def checks_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(request_memory, "CHECK_S", 0.001)


async def waiting(lease: Lease, num_bytes: int) -> "asyncio.Task[None]":
    task = asyncio.ensure_future(lease.grow(num_bytes))
    await asyncio.sleep(0)
    assert not task.done()
    return task


async def test_a_body_waits_until_there_is_room_and_small_ones_do_not() -> None:
    memory = RequestMemory(LIMIT, clock=Clock())
    first, second, small = (memory.open(0) for _ in range(3))
    await first.grow(600_000)
    task = await waiting(second, 200_000)
    await small.grow(5000)
    first.close()
    await task
    assert memory.used_bytes == 205_000
    for lease in (first, second, small):
        lease.close()
    assert memory.used_bytes == 0


async def test_a_body_that_waits_too_long_is_refused_and_gives_its_place_to_others() -> None:
    clock = Clock()
    memory = RequestMemory(LIMIT, clock=clock)
    first, second, third = (memory.open(0) for _ in range(3))
    await first.grow(600_000)
    first.complete()
    refused, behind = await waiting(second, 200_000), await waiting(third, 100_000)
    clock.now_s = PAUSE_S
    with pytest.raises(ApiError) as caught:
        await refused
    assert (caught.value.status, caught.value.code) == (503, "request_memory_full")
    assert "--request-memory-bytes" in caught.value.message
    await behind
    assert memory.used_bytes == 700_000


async def test_the_body_that_stands_still_makes_room_for_one_that_waits() -> None:
    clock, evicted = Clock(), []
    memory = RequestMemory(LIMIT, clock=clock)
    leases: list[Lease] = []
    for number in range(3):
        leases.append(memory.open(0, evict=lambda number=number: evicted.append(number) or leases[number].close()))  # type: ignore[misc, func-returns-value]
        await leases[-1].grow(200_000)
        clock.now_s += 0.1
    leases[0].complete()
    task = await waiting(memory.open(0), 200_000)
    for _ in range(5):
        await asyncio.sleep(0.001)
    assert evicted == [] and not task.done()
    clock.now_s += IDLE_S
    await task
    assert evicted == [1] and leases[1].is_evicted, "of those that have not arrived the one that is idle for longest"


async def test_one_look_serves_all_that_wait_and_ends_one_body_for_each(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, evicted = Clock(), []
    looks: list[int] = []
    memory = RequestMemory(LIMIT, clock=clock)
    monkeypatch.setattr(request_memory, "CHECK_S", 3600.0)  # no second look
    for number in range(6):
        await memory.open(0, evict=lambda number=number: evicted.append(number)).grow(110_000)  # type: ignore[misc]
        clock.now_s += 0.1
    tasks = [await waiting(memory.open(0), 100_000) for _ in range(3)]
    assert evicted == []
    clock.now_s += IDLE_S
    monkeypatch.setattr(memory, "_reading", _Counted(memory._reading, looks))
    memory._look()
    assert evicted == [0, 1, 2] and len(looks) == 1
    for task in tasks:
        task.cancel()


class _Counted(dict[Lease, None]):
    """Bodies that are read; records each time that all are looked at."""

    def __init__(self, leases: dict[Lease, None], looks: list[int]) -> None:
        super().__init__(leases)
        self._looks = looks

    def __iter__(self) -> Iterator[Lease]:
        self._looks.append(len(self))
        return super().__iter__()


async def test_with_several_tenants_none_takes_all_and_they_take_turns() -> None:
    memory = RequestMemory(LIMIT, num_tenants=2, clock=Clock())
    held = memory.open(0)
    await held.grow(600_000)
    held.complete()
    of_first = [await waiting(memory.open(0), 100_001) for _ in range(3)]
    other = memory.open(1)
    task = await waiting(other, 100_001)
    held.close()
    await asyncio.gather(task, *of_first)
    assert memory.used_bytes == 400_004
    greedy = memory.open(0)
    big = await waiting(greedy, 500_000)
    other.close()
    for _ in range(3):
        await asyncio.sleep(0.001)
    assert not big.done()
    big.cancel()


async def test_what_is_alone_fits_whatever_its_size() -> None:
    memory = RequestMemory(1000, clock=Clock())
    lease = memory.open(0)
    await lease.grow(5000)
    await lease.grow(5000)
    assert memory.used_bytes == 10_000


async def test_at_critical_memory_all_bodies_that_are_read_end() -> None:
    evicted = []
    memory = RequestMemory(LIMIT, clock=Clock())
    complete = memory.open(0, evict=lambda: evicted.append("complete"))
    complete.complete()
    memory.open(0, evict=lambda: evicted.append("read"))
    memory.evict_reading()
    memory.evict_reading()
    assert evicted == ["read"]


async def test_a_lease_tells_when_it_ends_once() -> None:
    ended = []
    lease = RequestMemory(LIMIT).open(0)
    lease.on_close(lambda: ended.append(1))
    lease.close()
    lease.close()
    assert ended == [1]


def test_parsed_bodies_are_estimated_from_their_structure() -> None:
    assert parsed_bytes(b'{"a": "' + b"x" * 1000 + b'"}') < 3000
    assert parsed_bytes(b"[" + b"1," * 1000 + b"1]") > 64_000
    assert parsed_bytes(b"{}" * 1000) > 600_000


async def test_a_smaller_pool_bounds_new_bodies_and_leaves_those_that_it_has() -> None:
    memory = RequestMemory(LIMIT, clock=Clock())
    first, second = memory.open(0), memory.open(0)
    await first.grow(300_000)
    memory.resize(LIMIT // 4)  # 175,000 for large bodies
    task = await waiting(second, 100_000)
    assert memory.used_bytes == 300_000 and memory.max_lease_bytes == 87_500
    first.close()
    await task
    assert memory.used_bytes == 100_000
