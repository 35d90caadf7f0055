"""Who is let in when several tenants wait, with a model whose arithmetic is exact."""

import heapq
import random

import pytest

from engine.config import share_of_places
from engine.scheduling.fairness import FairShare
from engine.scheduling.scheduler import Scheduler
from engine.scheduling.sequence import Sequence, Status
from engine.scheduling.waiting_queue import MIN_PRUNED, WaitingQueue
from engine.types import Request, SamplingParams
from tests.engine.scheduling.test_scheduler import Bench, random_prompt

ONE, OTHER = 0, 1


class TenantBench(Bench):
    """A Bench whose requests have tenants."""

    def __init__(self, num_tenants: int = 2, **settings: object) -> None:
        super().__init__(**settings)  # type: ignore[arg-type]
        self.scheduler = Scheduler(
            self.block_manager,
            max_num_seqs=self.max_num_seqs,
            max_num_batched_tokens=self.budget,
            max_model_len=self.scheduler.max_model_len,
            eos_token_ids=self.eos,
            by_priority=self.by_priority,
            num_tenants=num_tenants,
        )

    def ask(self, tenant: int, prompt: list[int], max_tokens: int, priority: int = 0) -> int:
        request_id = len(self.requests)
        params = SamplingParams(max_tokens=max_tokens)
        request = Request(request_id, prompt, params, priority, arrival_s=self.now, tenant=tenant)
        self.scheduler.add(request)
        self.requests[request_id] = request
        return request_id

    def served(self, tenant: int) -> int:
        return self.scheduler.fair_share.served(tenant)


def waiting(arrival: int, tenant: int = ONE, priority: int = 0) -> Sequence:
    return Sequence(Request(arrival, [1], SamplingParams(), priority, tenant=tenant), (priority, arrival), 1)


@pytest.mark.parametrize("seed", range(20))
def test_with_one_tenant_the_order_is_priority_then_arrival(seed: int) -> None:
    """Against a plain heap, with departures and returns of what was let in."""
    rng = random.Random(seed)
    queue, naive, let_in = WaitingQueue(), [], []
    for arrival in range(400):
        sequence = waiting(arrival, priority=rng.randrange(3))
        queue.push(sequence)
        heapq.heappush(naive, (sequence.order[0], arrival, sequence))
        if naive and rng.random() < 0.2:
            gone = naive.pop(rng.randrange(len(naive)))[2]
            heapq.heapify(naive)
            gone.status = Status.FINISHED
            queue.remove(gone)
        for _ in range(rng.randrange(2)):
            if naive:
                expected = heapq.heappop(naive)[2]
                assert queue.peek() is expected
                assert queue.pop() is expected
                let_in.append(expected)
        if let_in and rng.random() < 0.1:
            returned = let_in.pop(rng.randrange(len(let_in)))
            returned.num_preemptions += 1
            queue.push(returned)
            heapq.heappush(naive, (returned.order[0], returned.request_id, returned))
        assert len(queue) == len(naive)
        assert set(queue) == {sequence for *_, sequence in naive}


@pytest.mark.parametrize("seed", range(10))
def test_of_two_that_always_wait_neither_is_served_more_than_the_bound(seed: int) -> None:
    """The bound of Sheng et al., theorem 4.3: 2 max(longest prompt, 2 * tokens in the pool). One asks for much at a
    time and often, the other for little."""
    rng = random.Random(seed)
    bench = TenantBench(num_blocks=24, max_num_seqs=6, prefix_caching=False)
    longest = 40
    bound = 2 * max(longest, 2 * bench.num_blocks * bench.block_size)
    most = 0
    for _ in range(1500):
        num_waiting = {ONE: 0, OTHER: 0}
        for sequence in bench.scheduler.requests.waiting:
            num_waiting[sequence.tenant] += 1
        if num_waiting[ONE] < 10:
            for _ in range(5):
                bench.ask(ONE, random_prompt(rng, 20, longest), 40)
        if num_waiting[OTHER] < 2:
            bench.ask(OTHER, random_prompt(rng, 1, 6), rng.randint(1, 4))
        bench.step()
        most = max(most, abs(bench.served(ONE) - bench.served(OTHER)))
    assert bench.served(ONE) > 10 * bound, "long enough to drift apart"
    assert most <= bound


def test_a_tenant_that_takes_every_place_does_not_keep_another_waiting() -> None:
    """The sponge: as many of the longest requests as there are, twice over. The other's first token comes at once."""
    bench = TenantBench(num_blocks=2000, max_num_seqs=16, budget=64)
    for _ in range(32):
        bench.ask(ONE, [1, 2, 3], 400)
    for _ in range(5):
        bench.step()
    assert len(bench.scheduler.requests.running) == share_of_places(16) == 14
    for number in range(20):
        short = bench.ask(OTHER, [5, number], 3)
        bench.step()
        assert len(bench.tokens[short]) == 1
        for _ in range(2):
            bench.step()
        assert bench.finished[short] == "length"
    assert sum(sequence.tenant == ONE for sequence in bench.scheduler.requests.running) == 14


def test_a_tenant_that_is_alone_on_a_server_for_several_keeps_one_place_in_eight_free_and_no_more() -> None:
    assert [share_of_places(count) for count in (1, 2, 4, 8, 16, 256)] == [1, 1, 3, 7, 14, 224]
    bench = TenantBench(num_tenants=1, num_blocks=2000, max_num_seqs=16, budget=64)
    for _ in range(32):
        bench.ask(ONE, [1, 2, 3], 40)
    bench.step()
    bench.step()
    assert len(bench.scheduler.requests.running) == 16


def test_where_places_are_scarce_the_one_served_less_goes_next() -> None:
    bench = TenantBench(num_tenants=1, max_num_seqs=1)
    first = [bench.ask(ONE, [1, 2, number], 10) for number in range(4)]
    bench.step()
    late = bench.ask(OTHER, [7, 7], 2)
    while late not in bench.finished:
        bench.step()
    assert [request_id in bench.finished for request_id in first] == [True, False, False, False]
    bench.run()


def test_nobody_saves_up_while_away() -> None:
    """A tenant that comes late starts level with those who wait: it does not get all that it could have had."""
    bench = TenantBench(num_tenants=1, max_num_seqs=1)
    for number in range(30):
        bench.ask(ONE, [1, 2, number], 10)
    while bench.served(ONE) < 300:
        bench.step()
    level = bench.served(ONE)
    for number in range(30):
        bench.ask(OTHER, [3, 4, number], 10)
    assert bench.served(OTHER) == level
    for _ in range(200):
        bench.step()
    assert abs(bench.served(ONE) - bench.served(OTHER)) <= 2 * (3 + 2 * 10)


def test_a_higher_priority_goes_before_a_tenant_that_was_served_less() -> None:
    bench = TenantBench(num_tenants=1, max_num_seqs=1)
    bench.ask(ONE, [1], 20)
    bench.step()
    later = bench.ask(OTHER, [2], 3)
    urgent = bench.ask(ONE, [3], 3, priority=-1)
    while later not in bench.finished:
        bench.step()
    assert urgent in bench.finished and bench.served(ONE) > bench.served(OTHER)


def test_by_arrival_alone_tenants_do_not_matter() -> None:
    bench = TenantBench(max_num_seqs=1, by_priority=False)
    ids = [bench.ask(tenant, [1, number], 3) for number, tenant in enumerate((ONE, ONE, ONE, OTHER))]
    while len(bench.finished) < 3:
        bench.step()
    assert list(bench.finished) == ids[:3]
    bench.run()


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("ahead", [False, True])
def test_under_random_load_of_many_tenants_all_finish_with_their_own_tokens(seed: int, ahead: bool) -> None:
    """Scarce blocks, priorities, departures; the first in order is never preempted; in the end nothing is left."""
    rng = random.Random(seed)
    bench = TenantBench(num_tenants=5, num_blocks=rng.choice([16, 30]), budget=rng.choice([6, 20]), ahead=ahead)
    left = set()
    for _ in range(300):
        if rng.random() < 0.3:
            priority = rng.choice([0, 0, 0, 1, -1])
            bench.ask(rng.randrange(5), random_prompt(rng, 1, 20), rng.randint(1, 15), priority)
        if rng.random() < 0.05 and bench.scheduler.requests.unfinished:
            gone = rng.choice(sorted(bench.scheduler.requests.unfinished))
            bench.scheduler.abort(gone)
            left.add(gone)
        first = bench.scheduler.requests.running[0] if bench.scheduler.requests.running else None
        bench.step()
        if (
            not ahead
            and first
            and bench.scheduler.requests.running
            and bench.scheduler.requests.running[0].order > first.order
        ):
            assert first.status is Status.FINISHED
    bench.run()
    for request_id in bench.requests:
        assert request_id in left or bench.tokens[request_id] == bench.expected(request_id)
    assert not bench.scheduler.requests.waiting._tenant_queues and not bench.scheduler.requests.waiting._throttled


@pytest.mark.parametrize("num_tenants", [1, 3])
def test_those_who_come_and_go_while_nobody_is_let_in_leave_nothing_behind(num_tenants: int) -> None:
    queue = WaitingQueue(FairShare())
    stays = waiting(0)
    queue.push(stays)
    for arrival in range(1, 5000):
        sequence = waiting(arrival, tenant=arrival % num_tenants)
        queue.push(sequence)
        sequence.status = Status.FINISHED
        queue.remove(sequence)
    held = len(queue._heap) + sum(len(tenant_queue.sequences) for tenant_queue in queue._tenant_queues.values())
    assert held <= MIN_PRUNED + 2 * num_tenants + 2
    assert queue.peek() is stays and list(queue) == [stays]
