"""The bound on the time that prompts take of a step, over the exact model and a clock that its positions advance."""

import pytest

from engine.scheduling.prompt_share import ACTIVE_S, MIN_POSITIONS, PROMPT_S
from engine.scheduling.step_plan import StepPlan
from tests.engine.scheduling.test_fairness import TenantBench

ONE, OTHER = 0, 1
STEP_S, POSITION_S = 1e-3, 1e-4  # on this machine
FULL = 2048  # positions: 0.2 s
SHARE = PROMPT_S / 2 / POSITION_S  # positions of one of two tenants


class TimedBench(TenantBench):
    """A bench whose steps take STEP_S and POSITION_S for each position."""

    def __init__(self, position_s: float = POSITION_S, **settings: object) -> None:
        super().__init__(num_blocks=20_000, budget=FULL, prefix_caching=False, max_num_seqs=64, **settings)  # type: ignore[arg-type]
        self.position_s = position_s

    def step(self) -> StepPlan:
        plan = self.scheduler.plan(self.now)
        self.plans.append(plan)
        result = self.runner.run(plan)
        self.now += STEP_S + self.position_s * plan.num_tokens
        self.apply(plan, result)
        return plan

    def prompt_positions(self, plan: StepPlan, tenant: int) -> int:
        return sum(c.length for c in plan.chunks if c.is_prefill and c.sequence.tenant == tenant)

    def measure_alone(self) -> None:
        """Let one tenant's prompts teach the scheduler what a position takes."""
        for _ in range(10):
            self.add_for(ONE, [1] * 3000, 1)
        while self.scheduler.has_work():
            self.step()


def test_a_lone_tenant_computes_its_prompts_in_full_steps() -> None:
    bench = TimedBench()
    for _ in range(4):
        bench.add_for(ONE, [1] * 3000, 1)
    assert [bench.step().num_tokens for _ in range(5)] == [FULL] * 5


def test_beside_another_tenant_a_step_of_prompts_takes_its_share_of_the_time() -> None:
    bench = TimedBench()
    bench.measure_alone()
    bench.add_for(OTHER, [2, 3], 400)  # decodes meanwhile
    for _ in range(4):
        bench.add_for(ONE, [1] * 3000, 1)
    bench.step()
    sizes = [bench.prompt_positions(bench.step(), ONE) for _ in range(20)]
    assert sizes == pytest.approx([SHARE] * 20, rel=0.1)


@pytest.mark.parametrize("position_s", [POSITION_S, 10 * POSITION_S])
def test_the_first_token_of_another_tenant_waits_for_two_short_steps(position_s: float) -> None:
    """The step in which its request arrives, and its own. Without shares each takes 0.2 or 2 s."""
    bench = TimedBench(position_s)
    bench.measure_alone()
    bench.add_for(OTHER, [5, 6], 1)
    for number in range(30):
        bench.add_for(ONE, [1] * 3000, 1)
        arrived_s = bench.now
        bench.step()
        short = bench.add_for(OTHER, [5, 6, number], 1)
        while short not in bench.finished:
            bench.step()
        least_s = MIN_POSITIONS * position_s
        assert bench.now - arrived_s <= 2 * (STEP_S + max(PROMPT_S / 2, least_s) + least_s)


def test_a_tenant_whose_share_is_used_up_does_not_hold_back_another_ones_prompt() -> None:
    bench = TimedBench()
    bench.measure_alone()
    for _ in range(8):
        bench.add_for(ONE, [1] * 3000, 1)
    bench.step()
    late = bench.add_for(OTHER, [2] * int(0.8 * SHARE), 1)
    plan = bench.step()
    assert late in bench.finished, "its prompt takes less than a share"
    assert bench.prompt_positions(plan, ONE) > 0, "and the other tenant goes on"


def test_short_prompts_of_a_tenant_are_admitted_within_its_share() -> None:
    bench = TimedBench()
    bench.measure_alone()
    bench.add_for(OTHER, [2, 3], 400)
    for _ in range(40):
        bench.add_for(ONE, [1] * 100, 1)
    plan = bench.step()
    assert SHARE - 100 < bench.prompt_positions(plan, ONE) <= SHARE
    bench.run()


def test_however_slow_the_machine_each_tenants_prompts_go_on() -> None:
    bench = TimedBench(position_s=1.0)
    bench.measure_alone()
    bench.add_for(OTHER, [2, 3], 4000)
    long_prompt = bench.add_for(ONE, [1] * 500, 1)
    while long_prompt not in bench.finished:
        assert bench.prompt_positions(bench.step(), ONE) in (MIN_POSITIONS, 500 % MIN_POSITIONS)


def test_a_step_that_decodes_for_long_has_as_much_time_for_prompts() -> None:
    """Where each step reads all weights, 60 ms for prompts would be a few positions: a step may double."""
    bench = TimedBench(position_s=0.01)
    bench.measure_alone()
    for number in range(40):
        bench.add_for(OTHER, [2, 3, number], 4000)
    for _ in range(20):
        bench.step()
    bench.add_for(ONE, [1] * 500, 1)
    bench.step()
    assert bench.prompt_positions(bench.step(), ONE) == pytest.approx(40 / 2, abs=2)


def test_a_tenant_that_has_left_bounds_nothing_after_a_second() -> None:
    bench = TimedBench()
    bench.measure_alone()
    bench.add_for(OTHER, [2, 3], 1)
    for _ in range(30):
        bench.add_for(ONE, [1] * 3000, 1)
    bench.step()
    ended_s = bench.now
    sizes = {}
    while bench.now < ended_s + 2 * ACTIVE_S:
        start_s = bench.now
        sizes[start_s - ended_s] = bench.step().num_tokens
    assert all(size < FULL / 2 for since_s, size in sizes.items() if since_s < ACTIVE_S - 0.01)
    assert all(size == FULL for since_s, size in sizes.items() if since_s > ACTIVE_S + 0.01)


def test_with_one_key_nothing_is_bounded() -> None:
    bench = TimedBench(num_tenants=1)
    bench.measure_alone()
    bench.add_for(OTHER, [2, 3], 400)
    bench.add_for(ONE, [1] * 3000, 1)
    assert bench.step().num_tokens == FULL
