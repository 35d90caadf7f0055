"""engine/grammars/mask_budget.py: rows beyond the budget sit out, in fair turns; on a fake clock."""

from collections.abc import Callable
from collections.abc import Sequence as Ids

from engine.grammars.mask_budget import MaskBudget
from engine.scheduling.sequence import Sequence
from engine.types import Request, SamplingParams

FORBIDDEN = 9  # a token that the grammar of SlowMatcher does not allow


class Clock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


class SlowMatcher:
    """Takes `cost_s` for each mask."""

    def __init__(self, clock: Clock, cost_s: float) -> None:
        self.clock, self.cost_s = clock, cost_s
        self.is_ready = True
        self.num_masks = 0

    def prepare(self, token_ids: object, start: int) -> bool:
        self.clock.now_s += self.cost_s
        self.num_masks += self.is_ready
        return self.is_ready

    def wait(self, timeout_s: float) -> None:
        self.clock.now_s += timeout_s

    def bitmask(self, token_ids: object, start: int) -> bytes:
        return b""

    def look_ahead(self, token_ids: object, start: int) -> "SlowMatcher":
        return self

    def draft_bitmask(self, draft: object) -> bytes:
        return b""

    def mask_behind(self, token_ids: Ids[int]) -> bytes | None:
        self.clock.now_s += self.cost_s
        return None if FORBIDDEN in token_ids else b""

    def num_allowed(self, token_ids: object) -> int:
        self.clock.now_s += self.cost_s
        return 1

    def forced_tokens(self, max_len: int, has_time: Callable[[], bool]) -> list[int]:
        found: list[int] = []
        while len(found) < max_len and has_time():
            self.clock.now_s += self.cost_s
            found.append(7)
        return found


def row(place: int, matcher: SlowMatcher | None, tenant: int = 0) -> Sequence:
    """A row that needs one position before its next token."""
    sequence = Sequence(Request(place, [1, 2], SamplingParams(), tenant=tenant), (0, place), 10, matcher)
    sequence.tenant, sequence.place, sequence.num_scheduled = tenant, place, 1
    return sequence


def test_no_step_takes_longer_than_its_budget_and_one_mask() -> None:
    clock = Clock()
    rows = [row(i, SlowMatcher(clock, 3.0)) for i in range(8)]
    budget = MaskBudget(10.0, clock)
    for _ in range(20):
        start_s = clock.now_s
        budget.share_out(rows)
        assert clock.now_s - start_s <= 13.0
        assert sum(not r.waits_for_mask for r in rows) == 4
        assert [r.num_to_schedule for r in rows] == [0 if r.waits_for_mask else 1 for r in rows]


def test_rows_of_a_tenant_take_turns() -> None:
    clock = Clock()
    matchers = [SlowMatcher(clock, 3.0) for _ in range(10)]
    rows = [row(i, matcher) for i, matcher in enumerate(matchers)]
    budget = MaskBudget(10.0, clock)
    for _ in range(20):
        budget.share_out(rows)
    assert {matcher.num_masks for matcher in matchers} == {8}


def test_one_row_of_another_tenant_gets_half_of_the_time() -> None:
    clock = Clock()
    other = SlowMatcher(clock, 3.0)
    rows = [row(i, SlowMatcher(clock, 3.0)) for i in range(50)] + [row(50, other, tenant=1)]
    budget = MaskBudget(3.0, clock)
    for _ in range(20):
        budget.share_out(rows)
    assert other.num_masks == 10


def test_a_tenant_that_comes_back_does_not_catch_up() -> None:
    clock = Clock()
    own, other = [row(i, SlowMatcher(clock, 3.0)) for i in range(4)], SlowMatcher(clock, 3.0)
    budget = MaskBudget(3.0, clock)
    for _ in range(50):
        budget.share_out(own)
    for _ in range(10):
        budget.share_out([*own, row(9, other, tenant=1)])
    assert other.num_masks <= 6


def test_rows_without_a_grammar_and_rows_of_prompts_never_sit_out() -> None:
    clock = Clock()
    plain, prompt = row(0, None), row(1, SlowMatcher(clock, 3.0))
    prompt.num_scheduled = 0
    rows = [row(i, SlowMatcher(clock, 3.0)) for i in range(2, 9)]
    MaskBudget(1.0, clock).share_out([plain, prompt, *rows])
    assert plain.num_to_schedule == 1 and prompt.num_to_schedule == 2


def test_a_row_whose_parser_is_built_sits_out_until_it_is_ready() -> None:
    clock = Clock()
    matcher = SlowMatcher(clock, 0.0)
    rows = [row(0, matcher), row(1, SlowMatcher(clock, 0.0))]
    budget = MaskBudget(10.0, clock)
    matcher.is_ready = False
    budget.share_out(rows)
    assert [r.waits_for_mask for r in rows] == [True, False]
    budget.wait(5.0)
    assert clock.now_s == 5.0
    matcher.is_ready = True
    budget.share_out(rows)
    assert not any(r.waits_for_mask for r in rows)


def test_drafts_get_the_time_that_the_masks_of_known_tokens_leave() -> None:
    clock = Clock()
    rows = [row(i, SlowMatcher(clock, 3.0)) for i in range(2)]
    budget = MaskBudget(14.0, clock)
    budget.share_out(rows)
    assert budget.prepare_draft(rows[0], (5, 6, 7, 8)) == 3 and clock.now_s == 15.0
    assert budget.prepare_draft(rows[1], (5,)) == 0 and budget.guide(rows[1]) is None
    budget.share_out(rows)
    guide = budget.guide(rows[1])
    assert guide is not None and guide.forced_tokens(10) == [7, 7, 7] and budget.guide(rows[0]) is None


def test_a_draft_is_cut_before_a_token_that_the_grammar_forbids() -> None:
    clock = Clock()
    budget, first = MaskBudget(10.0, clock), row(0, SlowMatcher(clock, 0.0))
    budget.share_out([first])
    assert [budget.prepare_draft(first, draft) for draft in ((5, 6), (5, FORBIDDEN, 6), (FORBIDDEN,))] == [2, 1, 0]


def test_the_time_of_a_tenants_drafts_counts_as_time_of_its_masks() -> None:
    clock = Clock()
    own, other = row(0, SlowMatcher(clock, 1.0)), row(1, SlowMatcher(clock, 1.0), tenant=1)
    budget = MaskBudget(100.0, clock)
    budget.share_out([own, other])
    guide = budget.guide(own)
    assert guide is not None and guide.num_allowed([5]) == 1
    budget.prepare_draft(own, (5, 6, 7))
    guide.forced_tokens(4)
    assert budget._used_s == {0: 1.0 + 1.0 + 3.0 + 4.0, 1: 1.0}
