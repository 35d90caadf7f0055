"""Requests between the lists: victims, preemption, and ends with a step in flight."""

import pytest

from engine.scheduling.active_requests import ActiveRequests
from engine.scheduling.blocks.geometry import BlockGeometry
from engine.scheduling.blocks.manager import BlockManager
from engine.scheduling.blocks.pool import BlockPool
from engine.scheduling.fairness import FairShare
from engine.scheduling.sequence import Sequence, Status
from engine.types import Request, SamplingParams


class _Requests(ActiveRequests):
    """Active requests over a pool of eight blocks; each running request holds one."""

    def __init__(self) -> None:
        self.manager = BlockManager(BlockPool(8), BlockGeometry(4, None, 4), prefix_caching=False)
        super().__init__(self.manager, FairShare())

    def add_running(self, request_id: int) -> Sequence:
        sequence = Sequence(Request(request_id, [1, 2], SamplingParams()), (0, request_id), 4)
        self.add(sequence)
        assert self.waiting.peek() is sequence
        self.start(self.waiting.pop())
        assert self.manager.allocate_for(sequence, 2) == 2
        return sequence

    @property
    def num_held(self) -> int:
        self.manager.pool.check_integrity(self.block_tables())
        self.check_integrity()
        return self.manager.pool.num_held


def test_the_victim_is_the_last_in_order_without_a_chunk_in_flight() -> None:
    requests = _Requests()
    first, second, third = (requests.add_running(i) for i in range(3))
    third.num_chunks_in_flight = 1
    assert requests.pick_victim() is second
    first.num_chunks_in_flight = second.num_chunks_in_flight = 1
    assert requests.pick_victim() is None


def test_a_preempted_request_waits_without_blocks_and_goes_before_newcomers() -> None:
    requests = _Requests()
    victim = requests.add_running(0)
    requests.add(Sequence(Request(1, [1], SamplingParams()), (0, 1), 4))
    requests.preempt(victim)
    assert requests.num_held == 0
    assert victim.status is Status.WAITING and requests.waiting.peek() is victim


def test_a_request_that_ends_with_a_chunk_in_flight_keeps_its_blocks_until_it_is_idle() -> None:
    requests = _Requests()
    sequence = requests.add_running(0)
    sequence.num_chunks_in_flight = 1
    requests.end(sequence)
    assert not requests.unfinished and not requests.running and requests.num_held == 1
    requests.free_if_idle(sequence)
    assert requests.num_held == 1
    sequence.num_chunks_in_flight = 0
    requests.free_if_idle(sequence)
    assert requests.num_held == 0


def test_a_lost_request_is_noticed() -> None:
    requests = _Requests()
    requests.add_running(0)
    requests.running.clear()
    with pytest.raises(AssertionError, match="neither running nor waiting"):
        requests.check_integrity()
