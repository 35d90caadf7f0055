"""Order of admission among several tenants, and their prefix caches, over the exact model."""

import random

import pytest

from engine.config import max_slots_per_tenant
from engine.scheduling.fairness import MIN_RUNNING
from engine.scheduling.sequence import Status
from tests.support.scheduler_bench import TenantBench, random_prompt

ONE, OTHER = 0, 1
LOWEST = -(2**31)


@pytest.mark.parametrize("seed", range(10))
def test_of_two_tenants_that_always_wait_neither_is_served_more_than_the_bound(seed: int) -> None:
    """The bound of Sheng et al., theorem 4.3: 2 max(longest prompt, 2 * tokens in the pool).

    One tenant sends many long requests, the other few short ones.
    """
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
                bench.add_for(ONE, random_prompt(rng, 20, longest), 40)
        if num_waiting[OTHER] < 2:
            bench.add_for(OTHER, random_prompt(rng, 1, 6), rng.randint(1, 4))
        bench.step()
        most = max(most, abs(bench.served(ONE) - bench.served(OTHER)))
    assert bench.served(ONE) > 10 * bound, "the run is too short for a difference to grow"
    assert most <= bound


def test_a_tenant_with_a_request_for_every_slot_does_not_keep_another_waiting() -> None:
    """One tenant sends twice as many long requests as there are slots. The other gets its first token at once."""
    bench = TenantBench(num_blocks=2000, max_num_seqs=16, budget=64)
    for _ in range(32):
        bench.add_for(ONE, [1, 2, 3], 400)
    for _ in range(5):
        bench.step()
    assert len(bench.scheduler.requests.running) == max_slots_per_tenant(16) == 14
    for number in range(20):
        short = bench.add_for(OTHER, [5, number], 3)
        bench.step()
        assert len(bench.tokens[short]) == 1
        for _ in range(2):
            bench.step()
        assert bench.finished[short] == "length"
    assert sum(sequence.tenant == ONE for sequence in bench.scheduler.requests.running) == 14


def test_one_slot_in_eight_is_reserved_for_other_tenants_and_none_with_one_tenant() -> None:
    assert [max_slots_per_tenant(count) for count in (1, 2, 4, 8, 16, 256)] == [1, 1, 3, 7, 14, 224]
    bench = TenantBench(num_tenants=1, num_blocks=2000, max_num_seqs=16, budget=64)
    for _ in range(32):
        bench.add_for(ONE, [1, 2, 3], 40)
    bench.step()
    bench.step()
    assert len(bench.scheduler.requests.running) == 16


@pytest.mark.parametrize(("max_num_seqs", "most"), [(64, 11), (16, MIN_RUNNING)])
def test_requests_with_costly_tokens_take_several_slots_while_another_tenant_is_active(
    max_num_seqs: int, most: int
) -> None:
    """Gate logits make a token cost 10, a plain one 2: 11 such requests cost as much as 55 plain ones, of 56 slots."""
    bench = TenantBench(num_blocks=4000, max_num_seqs=max_num_seqs, budget=256)
    for number in range(20):
        bench.add_for(ONE, [1, 2, number], 400, gate_logits=True)
    bench.add_for(OTHER, [5], 400)
    for _ in range(3):
        bench.step()
    tenants = [sequence.tenant for sequence in bench.scheduler.requests.running]
    assert (tenants.count(ONE), tenants.count(OTHER)) == (most, 1)


def test_a_lone_tenants_costly_requests_take_one_slot_each() -> None:
    bench = TenantBench(num_blocks=4000, max_num_seqs=16, budget=256)
    for number in range(20):
        bench.add_for(ONE, [1, 2, number], 400, gate_logits=True)
    for _ in range(3):
        bench.step()
    assert len(bench.scheduler.requests.running) == 14


def test_the_slots_of_costly_requests_are_free_again_when_they_end() -> None:
    bench = TenantBench(num_blocks=4000, max_num_seqs=64, budget=256)
    for number in range(22):
        bench.add_for(ONE, [1, 2, number], 3 if number < 11 else 400, gate_logits=True)
    bench.add_for(OTHER, [5], 400)
    for _ in range(10):
        bench.step()
    assert set(range(11)) <= set(bench.finished)
    assert sum(sequence.tenant == ONE for sequence in bench.scheduler.requests.running) == 11


def test_the_tenant_served_least_is_admitted_next() -> None:
    bench = TenantBench(num_tenants=1, max_num_seqs=1)
    first = [bench.add_for(ONE, [1, 2, number], 10) for number in range(4)]
    bench.step()
    late = bench.add_for(OTHER, [7, 7], 2)
    while late not in bench.finished:
        bench.step()
    assert [request_id in bench.finished for request_id in first] == [True, False, False, False]
    bench.run()


def test_a_tenant_saves_up_no_service_while_it_sends_nothing() -> None:
    """A tenant that comes late starts level with the waiting tenants, without the service that it did not use."""
    bench = TenantBench(num_tenants=1, max_num_seqs=1)
    for number in range(30):
        bench.add_for(ONE, [1, 2, number], 10)
    while bench.served(ONE) < 300:
        bench.step()
    level = bench.served(ONE)
    for number in range(30):
        bench.add_for(OTHER, [3, 4, number], 10)
    assert bench.served(OTHER) == level
    for _ in range(200):
        bench.step()
    assert abs(bench.served(ONE) - bench.served(OTHER)) <= 2 * (3 + 2 * 10)


def test_a_low_priority_number_comes_before_its_own_tenants_requests_and_after_another_tenants_turn() -> None:
    bench = TenantBench(num_tenants=1, max_num_seqs=1)
    bench.add_for(ONE, [1], 20)
    bench.step()
    later = bench.add_for(ONE, [4], 3)
    turn = bench.add_for(OTHER, [2], 3)
    urgent = bench.add_for(ONE, [3], 3, priority=LOWEST)
    bench.run()
    assert list(bench.finished)[1:] == [turn, urgent, later]


@pytest.mark.parametrize("ahead", [False, True])
@pytest.mark.parametrize("max_num_seqs", [1, 4])
def test_a_stream_of_urgent_requests_does_not_delay_another_tenants_fair_turn(max_num_seqs: int, ahead: bool) -> None:
    """The other tenant gets the next place: a reserved one, or with a single place the one that is free next."""
    bench = TenantBench(num_blocks=400, max_num_seqs=max_num_seqs, ahead=ahead)
    for number in range(60):
        for _ in range(2):
            bench.add_for(ONE, [1, 2, number], 6, priority=LOWEST)
        bench.step()
        if number == 10:
            patient = bench.add_for(OTHER, [5, 6, 7], 4, priority=-LOWEST - 1)
            first_later = len(bench.requests)
    assert bench.tokens[patient] == bench.expected(patient)
    admitted = [c.sequence.request_id for plan in bench.plans for c in plan.chunks]
    served_between = {i for i in admitted[: admitted.index(patient)] if first_later <= i}
    assert not served_between, "later requests of the first tenant came before the other's turn"


@pytest.mark.parametrize("seed", range(10))
def test_a_tenants_requests_start_in_the_same_steps_whatever_the_others_priorities(seed: int) -> None:
    """Every request of one tenant starts in the step in which it would if the other tenant set no priorities.

    The other tenant's requests are alike, so that their order among themselves changes nothing else.
    """
    histories = []
    for has_priorities in (False, True):
        rng, urgency = random.Random(seed), random.Random(seed + 100)
        bench = TenantBench(num_blocks=30, max_num_seqs=6, prefix_caching=False)
        own: list[int] = []
        for _ in range(200):
            if rng.random() < 0.7:
                priority = urgency.choice([LOWEST, -1, 0, 1]) if has_priorities else 0
                bench.add_for(ONE, [1, 2, 3, 4], 12, priority)
            if rng.random() < 0.1:
                own.append(bench.add_for(OTHER, random_prompt(rng, 1, 9), rng.randint(1, 8), rng.randint(-1, 1)))
            bench.step()
        histories.append([_first_step(bench, request_id) for request_id in own])
        bench.run()
    assert histories[0] == histories[1]


def _first_step(bench: TenantBench, request_id: int) -> int | None:
    plans = enumerate(bench.plans)
    return next((step for step, plan in plans if request_id in {c.sequence.request_id for c in plan.chunks}), None)


def test_a_low_priority_number_preempts_requests_of_its_own_tenant_only() -> None:
    """Each of three requests grows to half of the pool. Without the urgent one, the two before it fit."""
    bench = TenantBench(num_tenants=3, num_blocks=12, max_num_seqs=8, budget=16, prefix_caching=False)
    mine = bench.add_for(ONE, [1] * 4, 20)
    others = bench.add_for(OTHER, [2] * 4, 20)
    bench.step()
    urgent = bench.add_for(ONE, [3] * 4, 20, priority=LOWEST)
    sequences = dict(bench.scheduler.requests.unfinished)
    bench.run()
    assert sequences[others].num_preemptions == sequences[urgent].num_preemptions == 0
    assert sequences[mine].num_preemptions > 0
    assert list(bench.finished)[-1] == mine


def test_an_urgent_request_that_came_later_is_preempted_for_another_tenants() -> None:
    bench = TenantBench(num_tenants=2, num_blocks=8, max_num_seqs=8, budget=16, prefix_caching=False)
    others = bench.add_for(OTHER, [2] * 4, 24)
    bench.step()
    urgent = bench.add_for(ONE, [3] * 4, 24, priority=LOWEST)
    sequences = dict(bench.scheduler.requests.unfinished)
    bench.run()
    assert sequences[others].num_preemptions == 0 and sequences[urgent].num_preemptions > 0
    assert list(bench.finished) == [others, urgent]


def test_in_order_of_arrival_tenants_do_not_matter() -> None:
    bench = TenantBench(max_num_seqs=1, by_priority=False)
    ids = [bench.add_for(tenant, [1, number], 3) for number, tenant in enumerate((ONE, ONE, ONE, OTHER))]
    while len(bench.finished) < 3:
        bench.step()
    assert list(bench.finished) == ids[:3]
    bench.run()


def test_in_order_of_arrival_no_slot_is_reserved() -> None:
    bench = TenantBench(num_blocks=2000, max_num_seqs=16, budget=64, by_priority=False)
    for _ in range(20):
        bench.add_for(ONE, [1, 2, 3], 400)
    for _ in range(3):
        bench.step()
    assert len(bench.scheduler.requests.running) == 16


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("ahead", [False, True])
def test_under_random_load_of_many_tenants_all_finish_with_their_own_tokens(seed: int, ahead: bool) -> None:
    """With few blocks, priorities and aborts. The first in order is never preempted, and at the end nothing is left."""
    rng = random.Random(seed)
    bench = TenantBench(num_tenants=5, num_blocks=rng.choice([16, 30]), budget=rng.choice([6, 20]), ahead=ahead)
    all_aborted = set()
    for _ in range(300):
        if rng.random() < 0.3:
            priority = rng.choice([0, 0, 0, 1, -1])
            bench.add_for(rng.randrange(5), random_prompt(rng, 1, 20), rng.randint(1, 15), priority)
        if rng.random() < 0.05 and bench.scheduler.requests.unfinished:
            aborted = rng.choice(sorted(bench.scheduler.requests.unfinished))
            bench.scheduler.abort(aborted)
            all_aborted.add(aborted)
        first = bench.scheduler.requests.running[0] if bench.scheduler.requests.running else None
        bench.step()
        assert ahead or not first or first.status is not Status.WAITING
    bench.run()
    for request_id in bench.requests:
        assert request_id in all_aborted or bench.tokens[request_id] == bench.expected(request_id)
    assert not bench.scheduler.requests.waiting._heaps


@pytest.mark.parametrize("by_priority", [True, False])
@pytest.mark.parametrize(("num_tenants", "share", "finds"), [(2, False, False), (2, True, True), (1, False, True)])
def test_a_tenant_finds_the_blocks_of_another_only_if_they_share(
    num_tenants: int, share: bool, finds: bool, by_priority: bool
) -> None:
    bench = TenantBench(num_tenants, share, by_priority=by_priority)
    hits = []
    for tenant in (ONE, ONE, OTHER, OTHER):
        bench.add_for(tenant, list(range(10)), 2)
        hits.append(bench.step().num_prefix_hits)
        while bench.scheduler.has_work():
            bench.step()
    assert hits == [0, 8, 8 if finds else 0, 8]
