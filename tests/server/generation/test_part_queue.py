"""server/generation/part_queue.py and admission of parts: turns, bounds, and what the parts take from new requests."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from engine.types import Request, SamplingParams
from server.errors import ApiError
from server.generation.admission import Admission
from server.generation.part_queue import PartQueue
from tests.support.servers.fake_engine import FakeEngine
from tests.support.servers.serving import saying

pytestmark = pytest.mark.anyio


class Places:
    """A queue of ten places, of which a tenant may take eight."""

    def __init__(self, free: int) -> None:
        self.free = free
        self.shares = {"a": 8, "b": 8, "c": 8}
        self.order: list[str] = []
        self.parts = PartQueue(lambda tenant, size: self.shares["abc"[tenant]] >= size, lambda size: self.free >= size)

    async def enter(self, name: str, size: int) -> None:
        """Wait for a turn as the tenant that the name begins with, then take the places."""
        await self.parts.turn("abc".index(name[0]), size)
        self.order.append(name)
        self.free -= size
        self.shares[name[0]] -= size

    @contextmanager
    def entering(self, *parts: tuple[str, int]) -> Iterator[list["asyncio.Task[None]"]]:
        tasks = [asyncio.create_task(self.enter(*part)) for part in parts]
        yield tasks
        for task in tasks:
            task.cancel()

    async def settle(self) -> None:
        """Give the turns that there are."""
        self.parts.choose()
        for _ in range(30):  # iterations of the loop: three for each part
            await asyncio.sleep(0)


async def test_tenants_take_turns_and_each_ones_parts_keep_their_order() -> None:
    places = Places(free=0)
    with places.entering(("a1", 2), ("a2", 2), ("a3", 2), ("b1", 2), ("b2", 2)):
        await places.settle()
        assert places.order == []
        places.free = 10
        await places.settle()
    assert places.order == ["a1", "b1", "a2", "b2", "a3"]


async def test_a_part_that_does_not_fit_is_not_passed_by_smaller_ones() -> None:
    places = Places(free=3)
    with places.entering(("a1", 4), ("b1", 1)):
        await places.settle()
        assert places.order == []
        places.free = 4
        await places.settle()
        assert places.order == ["a1"]


async def test_a_tenant_at_its_share_holds_back_nobody_and_reserves_nothing() -> None:
    places = Places(free=10)
    places.shares["a"] = 1
    with places.entering(("a1", 2), ("b1", 9)):
        await places.settle()
        assert places.order == [] and places.parts.num_reserved == 0
        places.shares["b"] = 9
        assert places.parts.num_reserved == 9
        await places.settle()
        assert places.order == ["b1"] and places.parts.has(0) and not places.parts.has(1)


@pytest.mark.parametrize("has_turn", [False, True])
async def test_a_cancelled_part_gives_its_turn_to_the_next(has_turn: bool) -> None:
    places = Places(free=0)
    with places.entering(("a1", 4), ("b1", 2)) as tasks:
        await places.settle()
        if has_turn:
            places.free = 4
            places.parts.choose()
        tasks[0].cancel()
        places.free = 2
        await places.settle()
    assert places.order == ["b1"] and not places.parts.has(0)


@pytest.mark.parametrize("next_name", ["a2", "b1"])
async def test_places_that_become_free_before_a_cancelled_part_has_left_go_to_the_next(next_name: str) -> None:
    """They become free when another request ends, which must not fail."""
    places = Places(free=0)
    with places.entering(("a1", 2), (next_name, 2)) as tasks:
        await places.settle()
        tasks[0].cancel()  # its task runs in the next iteration of the loop
        places.free = 2
        places.parts.choose()
        await places.settle()
    assert places.order == [next_name]


def requests(tenant: int, *ids: int) -> list[Request]:
    return [Request(request_id, [1], SamplingParams(max_tokens=0), tenant=tenant) for request_id in ids]


class CountingEngine(FakeEngine):
    """An engine in which submitted requests wait until `finish`."""

    def __init__(self, admission_of: int, num_tenants: int) -> None:
        super().__init__(saying("a"), held=True)
        self.admission = Admission(self, admission_of, num_tenants=num_tenants)

    def finish(self, *ids: int) -> None:
        for request_id in ids:
            self.num_waiting -= 1
            self.admission.remove(request_id)


async def test_new_requests_wait_behind_parts_of_their_own_key_and_leave_places_to_those_of_others() -> None:
    engine = CountingEngine(admission_of=16, num_tenants=2)
    admission = engine.admission
    admission.admit(requests(0, *range(12)))
    engine.num_waiting = 12
    part = asyncio.create_task(admission.admit_part(requests(1, 20, 21, 22, 23, 24)))
    await asyncio.sleep(0)  # the task runs
    assert not part.done()
    with pytest.raises(ApiError) as caught:
        admission.admit(requests(1, 30))
    assert caught.value.code == "queue_full"
    assert not admission.has_room(0, 1), "4 places are free and 5 are promised"
    engine.finish(0, 1)
    assert admission.has_room(0, 1) and not admission.has_room(0, 2)
    await part
    engine.num_waiting += 5
    assert admission.has_room(1, 1) and not admission.has_room(1, 2)
    assert admission.num_tokens == 15
