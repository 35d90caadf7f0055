"""Requests with drafts in the scheduler: spare budget and blocks only, and the same tokens."""

from collections.abc import Collection, Sequence
from typing import Any

from engine.scheduling.sequence import Status
from engine.scheduling.step_plan import Chunk
from engine.speculation.speculator import Candidate, StepTime
from engine.types import Request, SamplingParams
from tests.simulator.exact import oracle, root_of
from tests.support.scheduler_bench import VOCAB, Bench, TenantBench


class FixedDrafter:
    """Drafts the next tokens of each request, which are right, and then one wrong one."""

    is_measuring = True

    def __init__(self, length: int, *, num_wrong: int = 0) -> None:
        self.length, self.num_wrong = length, num_wrong
        self.steps: list[StepTime] = []
        self.room: list[int] = []
        self.shared: list[bool] = []

    def source(self, request: Request, end_token_ids: Collection[int]) -> Any:
        return oracle(root_of(request), request.prompt_token_ids, request.params.max_tokens + 20, None, VOCAB), len(
            request.prompt_token_ids
        )

    def may_draft(self, num_rows: int) -> bool:
        assert num_rows > 0
        return True

    def choose(
        self, candidates: Sequence[Candidate], num_rows: int, max_drafted: int, *, is_shared: bool = False
    ) -> list[tuple[int, ...]]:
        self.room.append(max_drafted)
        self.shared.append(is_shared)
        drafts = []
        for source, token_ids, max_len, _ in candidates:
            tokens, num_prompt_tokens = source  # type: ignore[misc]
            start = len(token_ids) - num_prompt_tokens
            right = tokens[start : start + min(self.length, max_len, max_drafted)]
            num_wrong = min(self.num_wrong, len(right))
            drafts.append((*right[: len(right) - num_wrong], *((VOCAB,) * num_wrong)))
            max_drafted -= len(right)
        return drafts

    def record(self, step: StepTime) -> None:
        self.steps.append(step)


def chunks(bench: Bench) -> list[Chunk]:
    return [chunk for plan in bench.plans for chunk in plan.chunks]


def test_a_step_of_no_request_asks_for_no_draft() -> None:
    bench = Bench()
    bench.scheduler.drafter = FixedDrafter(4)
    assert not bench.scheduler.plan(0.0).chunks


def test_right_drafts_save_steps_and_wrong_ones_cost_none() -> None:
    lengths = {}
    for name, drafter in (("none", None), ("right", FixedDrafter(4)), ("wrong", FixedDrafter(4, num_wrong=4))):
        bench = Bench()
        bench.scheduler.drafter = drafter
        request_id = bench.add([1, 2, 3], 21)
        bench.run()
        assert bench.tokens[request_id] == bench.expected(request_id)
        lengths[name] = len(bench.plans)
    assert lengths == {"none": 21, "right": 5, "wrong": 21}


def test_a_draft_has_no_tokens_behind_the_last_one() -> None:
    bench = Bench()
    bench.scheduler.drafter = FixedDrafter(9)
    bench.add([1, 2, 3], 4)
    bench.run()
    assert [len(chunk.draft) for chunk in chunks(bench)] == [0, 2]


def test_a_token_that_ends_the_request_ends_it_within_an_accepted_draft() -> None:
    prompt = [5, 6, 7]
    tokens = oracle(root_of(Request(0, prompt, SamplingParams())), prompt, 20, None, VOCAB)
    bench = Bench(eos=(tokens[4],))
    bench.scheduler.drafter = FixedDrafter(9)
    request_id = bench.add(prompt, 20)
    bench.run()
    assert bench.tokens[request_id] == tokens[: tokens.index(tokens[4]) + 1]
    assert bench.finished[request_id] == "stop"
    assert bench.scheduler.fair_share.served(0) == _served_without_drafts(prompt, tokens[4])


def _served_without_drafts(prompt: list[int], eos: int) -> int:
    bench = Bench(eos=(eos,))
    bench.add(prompt, 20)
    bench.run()
    return bench.scheduler.fair_share.served(0)


def test_a_step_with_a_prompt_has_no_drafts() -> None:
    bench = Bench(budget=6)
    bench.scheduler.drafter = FixedDrafter(3)
    bench.add([1, 2, 3], 12)
    bench.step()
    bench.add(list(range(14)), 2)
    bench.run()
    for plan in bench.plans:
        assert not plan.num_drafted or not any(chunk.is_prefill for chunk in plan.chunks)
    assert any(plan.num_drafted for plan in bench.plans)


def test_drafts_take_the_rest_of_the_budget() -> None:
    bench = Bench(budget=6, max_num_seqs=4)
    bench.scheduler.drafter = drafter = FixedDrafter(9)
    for start in range(4):
        bench.add([start], 10)
    bench.run()
    assert drafter.room[0] == 2 and max(plan.num_tokens for plan in bench.plans) == 6


def test_a_draft_takes_no_block_that_a_running_request_may_need_next() -> None:
    """Of 13 blocks of 2, 6 hold the three requests. A draft has one position in its request's last block."""
    bench = Bench(num_blocks=13, block_size=2, budget=64, prefix_caching=False)
    bench.scheduler.drafter = FixedDrafter(6)
    for start in range(3):
        bench.add([start, 1], 12)
    bench.step()
    plan = bench.scheduler.plan(9.0)
    assert [len(chunk.draft) for chunk in plan.chunks] == [6, 3, 1]
    assert bench.block_manager.pool.num_free == 3
    bench.apply(plan, bench.runner.run(plan))
    bench.run()
    for request_id in range(3):
        assert bench.tokens[request_id] == bench.expected(request_id)


def test_a_request_that_ends_with_a_draft_in_flight_leaves_no_block() -> None:
    bench = Bench()
    bench.scheduler.drafter = FixedDrafter(5)
    request_id = bench.add([1, 2, 3], 20)
    bench.step()
    plan = bench.scheduler.plan(9.0)
    assert plan.num_drafted == 5
    [chunk] = plan.chunks
    assert chunk.sequence.num_to_schedule == 0 and chunk.sequence.status is Status.RUNNING
    bench.scheduler.abort(request_id)
    bench.apply(plan, bench.runner.run(plan))
    bench.assert_idle()


def test_the_time_of_a_step_is_learned_with_its_rows_and_accepted_tokens() -> None:
    bench = Bench()
    bench.scheduler.drafter = drafter = FixedDrafter(4, num_wrong=1)
    bench.add([1, 2, 3], 9)
    bench.run()
    assert drafter.steps == [StepTime(1, 5, 3, 0.0), StepTime(1, 4, 2, 0.0), StepTime(1, 1, 0, 0.0)]


class AnyToken:
    """A grammar that allows every token."""

    MASK = b"\xff" * 16

    def prepare(self, token_ids: Sequence[int], start: int) -> bool:
        return True

    def bitmask(self, token_ids: Sequence[int], start: int) -> bytes:
        return self.MASK

    def look_ahead(self, token_ids: Sequence[int], start: int) -> None:
        return None

    def draft_bitmask(self, draft: Sequence[int]) -> bytes:
        return self.MASK

    def wait(self, timeout_s: float) -> None:
        pass


class FixedMasks:
    """Has time for so many masks of each draft; None: for no draft at all."""

    def __init__(self, count: int | None) -> None:
        self.count = count

    def guide(self, sequence: object) -> Any:
        return None if self.count is None else self

    def prepare_draft(self, sequence: object, draft: Sequence[int]) -> int:
        assert self.count is not None
        return min(self.count, len(draft))


def test_a_draft_under_a_grammar_has_as_many_tokens_as_masks() -> None:
    bench = Bench()
    bench.scheduler.drafter = FixedDrafter(4)
    bench.requests[0] = request = Request(0, [1, 2, 3], SamplingParams(max_tokens=12))
    bench.scheduler.add(request, AnyToken())
    bench.step()
    lengths = []
    for masks in (None, FixedMasks(None), FixedMasks(0), FixedMasks(2), FixedMasks(9)):
        plan = bench.scheduler.plan(9.0, masks)
        lengths += [len(chunk.draft) for chunk in plan.chunks]
        bench.apply(plan, bench.runner.run(plan))
    bench.run()
    assert lengths == [0, 0, 0, 2, 4]
    assert bench.tokens[0] == bench.expected(0)


def test_a_request_that_reports_gate_logits_drafts_nothing() -> None:
    bench = Bench()
    bench.scheduler.drafter = FixedDrafter(4)
    for request_id, reports in enumerate((True, False)):
        params = SamplingParams(max_tokens=9)
        bench.scheduler.add(Request(request_id, [1, 2, 3], params, expert_routing=True, gate_logits=reports))
    sources = [sequence.drafts for sequence in bench.scheduler.requests.unfinished.values()]
    assert sources[0] is None and sources[1] is not None


def test_the_drafter_is_told_when_tenants_share_steps() -> None:
    bench = TenantBench(num_tenants=2)
    bench.scheduler.drafter = drafter = FixedDrafter(1)
    bench.add_for(0, [1, 2, 3], 12)
    bench.step()
    bench.step()
    assert not any(drafter.shared)
    bench.add_for(1, [4, 5, 6], 12)
    bench.step()
    bench.step()
    assert drafter.shared[-1]
