"""Order of the waiting queue, against a plain heap; removal leaves nothing behind."""

import heapq
import random

import pytest

from engine.scheduling.fairness import FairShare
from engine.scheduling.sequence import Sequence, Status
from engine.scheduling.waiting_queue import MIN_PRUNED, WaitingQueue
from engine.types import Request, SamplingParams

LOWEST = -(2**31)


def make_waiting(arrival: int, tenant: int = 0, priority: int = 0) -> Sequence:
    return Sequence(Request(arrival, [1], SamplingParams(), priority, tenant=tenant), (priority, arrival), 1)


@pytest.mark.parametrize("seed", range(20))
def test_with_one_tenant_the_order_is_priority_then_arrival(seed: int) -> None:
    """Against a plain heap, with aborts, and preemptions of admitted requests."""
    rng = random.Random(seed)
    queue, admitted = WaitingQueue(), []
    naive: list[tuple[int, int, Sequence]] = []
    for arrival in range(400):
        sequence = make_waiting(arrival, priority=rng.randrange(3))
        queue.push(sequence)
        heapq.heappush(naive, (sequence.order[0], arrival, sequence))
        if naive and rng.random() < 0.2:
            ended = naive.pop(rng.randrange(len(naive)))[2]
            heapq.heapify(naive)
            ended.status = Status.FINISHED
            queue.remove(ended)
        for _ in range(rng.randrange(2)):
            if naive:
                expected = heapq.heappop(naive)[2]
                assert queue.peek() is expected
                assert queue.pop() is expected
                admitted.append(expected)
        if admitted and rng.random() < 0.1:
            returned = admitted.pop(rng.randrange(len(admitted)))
            returned.num_preemptions += 1
            queue.push(returned)
            heapq.heappush(naive, (returned.order[0], returned.request_id, returned))
        assert len(queue) == len(naive)
        assert set(queue) == {sequence for *_, sequence in naive}


@pytest.mark.parametrize("num_tenants", [1, 3])
def test_requests_aborted_while_none_is_admitted_leave_nothing_behind(num_tenants: int) -> None:
    queue = WaitingQueue(FairShare())
    kept = make_waiting(0)
    queue.push(kept)
    for arrival in range(1, 5000):
        sequence = make_waiting(arrival, tenant=arrival % num_tenants)
        queue.push(sequence)
        sequence.status = Status.FINISHED
        queue.remove(sequence)
    assert sum(map(len, queue._heaps.values())) <= MIN_PRUNED + 2 * num_tenants + 2
    assert queue.peek() is kept and list(queue) == [kept]


def test_a_tenant_at_its_limit_waits_until_one_of_its_requests_stops() -> None:
    queue = WaitingQueue(FairShare(max_running_each=1))
    first, second, other = make_waiting(0), make_waiting(1), make_waiting(2, tenant=1)
    for sequence in (first, second, other):
        queue.push(sequence)
    assert queue.peek() is first
    queue.pop().status = Status.RUNNING
    queue.fair_share.on_started(0)
    assert queue.peek() is other
    queue.pop().status = Status.RUNNING
    queue.fair_share.on_started(1)
    assert queue.peek() is None and len(queue) == 1
    queue.fair_share.on_stopped(0)
    assert queue.peek() is second


def test_a_priority_orders_the_requests_of_its_tenant_only() -> None:
    queue = WaitingQueue()
    sequences = [make_waiting(0, tenant=1), make_waiting(1), make_waiting(2, priority=LOWEST)]
    for sequence in sequences:
        queue.push(sequence)
    popped = []
    for _ in sequences:
        popped.append(queue.pop())
        queue.fair_share.charge(popped[-1].tenant, 5)
    assert [sequence.request_id for sequence in popped] == [0, 2, 1]


def test_preempted_requests_go_before_other_tenants_in_scheduling_order_whatever_their_priority() -> None:
    queue = WaitingQueue()
    queue.push(make_waiting(0, tenant=2, priority=LOWEST))
    for arrival, (place, priority) in enumerate([(7, LOWEST), (3, 1)], 1):
        preempted = make_waiting(arrival, tenant=arrival % 2, priority=priority)
        preempted.place, preempted.num_preemptions = place, 1
        queue.push(preempted)
    assert [queue.pop().request_id for _ in range(3)] == [2, 1, 0]


def test_a_preempted_request_behind_an_urgent_one_of_its_tenant_does_not_lend_it_its_place() -> None:
    queue = WaitingQueue()
    preempted, urgent, other = make_waiting(0), make_waiting(2, priority=LOWEST), make_waiting(1, tenant=1)
    preempted.num_preemptions = 1
    queue.fair_share.charge(0, 5)
    for sequence in (other, preempted, urgent):
        queue.push(sequence)
    queue.fair_share.charge(0, 1)
    assert [queue.pop() for _ in range(3)] == [other, urgent, preempted]
