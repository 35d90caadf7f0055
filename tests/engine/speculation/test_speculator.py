"""Lengths of drafts under a known machine: simulated step times, texts with known rates of right guesses."""

import random
from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest

from engine.speculation.draft_source import MAX_DRAFT, Draft, DraftSource, Grammar
from engine.speculation.row_times import MIN_STEPS, time_shape
from engine.speculation.speculator import (
    MAX_DRAFTED,
    MAX_REQUESTS,
    MAX_SHARED_STRETCH,
    QUIET_STEPS,
    Candidate,
    Speculator,
    StepTime,
    _lengths_of,
)
from engine.speculation.time_left import MAX_STRETCH
from engine.types import Request, SamplingParams
from tests.support.speculation.guessing_drafter import EagerDrafter

SHAPE = time_shape(8, 2)


def _request(number: int, prompt: list[int]) -> Request:
    return Request(number, prompt, SamplingParams(max_tokens=10_000))


class Machine:
    """Generates texts token by token, with drafts, and adds up the time of the steps."""

    def __init__(
        self,
        texts: list[list[int]],
        prompt_len: int,
        seconds: Callable[[int], float] = SHAPE,
        *,
        search_s: float = 0.0,
        rebuild_s: float = 0.0,
    ) -> None:
        """`search_s`: of the search in one text. `rebuild_s`: of a step with drafts, and of the next one without."""
        self.speculator = Speculator(SHAPE)
        self.texts = texts
        self.lengths = [prompt_len + 1] * len(texts)
        self.sources = [self.speculator.source(_request(i, t[:prompt_len]), ()) for i, t in enumerate(texts)]
        self.seconds = seconds
        self.search_s, self.rebuild_s = search_s, rebuild_s
        self.had_drafts = False
        self.num_searches = 0
        self.spent_s = self.plain_s = 0.0
        self.most_drafted = 0

    def run(self, num_steps: int) -> None:
        """Run steps until a text ends; `plain_s` becomes the time in which steps without drafts give as many tokens."""
        for _ in range(num_steps):
            if any(length + MAX_DRAFT + 4 > len(text) for text, length in zip(self.texts, self.lengths, strict=True)):
                return
            candidates = [
                Candidate(source, text[:length], 100)
                for source, text, length in zip(self.sources, self.texts, self.lengths, strict=True)
            ]
            is_searching = self.speculator.may_draft(len(candidates))
            drafts = (
                self.speculator.choose(candidates, len(candidates), 1000) if is_searching else [()] * len(candidates)
            )
            self._step(drafts, is_searching * self.search_s * len(candidates))
            self.num_searches += is_searching

    def _step(self, drafts: list[tuple[int, ...]], search_s: float) -> None:
        num_accepted = 0
        for index, draft in enumerate(drafts):
            text, length = self.texts[index], self.lengths[index]
            count = next((i for i, t in enumerate(draft) if t != text[length + i]), len(draft))
            self.lengths[index] += count + 1
            num_accepted += count
        num_drafted = sum(map(len, drafts))
        self.most_drafted = max(self.most_drafted, num_drafted)
        seconds = self.seconds(len(drafts) + num_drafted) + search_s
        seconds += self.rebuild_s * (num_drafted > 0 or self.had_drafts)
        self.had_drafts = num_drafted > 0
        self.spent_s += seconds
        self.plain_s += self.seconds(len(drafts)) * (1 + num_accepted / len(drafts))
        if self.speculator.is_measuring:
            self.speculator.record(StepTime(len(drafts), len(drafts) + num_drafted, num_accepted, seconds))


def _copies(rng: random.Random, change: float) -> list[int]:
    """A text whose second half is its first half with some tokens changed."""
    first = [rng.randrange(30_000) for _ in range(1500)]
    return first + [rng.randrange(30_000) if rng.random() < change else token for token in first]


def _noise(rng: random.Random) -> list[int]:
    """A text in which every token pair occurs often and says nothing about the next token."""
    return [rng.randrange(12) for _ in range(3000)]


def _code(rng: random.Random) -> list[int]:
    """Fragments of 2 to 5 tokens out of twenty in any order: about half of the guesses are right at first."""
    fragments = [[rng.randrange(1000) for _ in range(rng.randint(2, 5))] for _ in range(20)]
    return [token for _ in range(900) for token in rng.choice(fragments)]


def test_a_copied_text_alone_is_much_faster() -> None:
    machine = Machine([_copies(random.Random(1), 0.02)], 1500)
    machine.run(150)
    assert machine.plain_s > 2 * machine.spent_s


def test_copied_texts_beside_each_other_gain_more() -> None:
    rng = random.Random(2)
    machine = Machine([_copies(rng, 0.02) for _ in range(16)], 1500)
    machine.run(60)
    assert machine.plain_s > 2.5 * machine.spent_s
    assert machine.most_drafted <= MAX_DRAFTED


@pytest.mark.parametrize("num_texts", [1, 4, 16])
@pytest.mark.parametrize(
    "seconds", [SHAPE, lambda rows: float(rows), lambda rows: 1 + 3 * (rows > 1)], ids=["shape", "linear", "a cliff"]
)
def test_texts_that_cannot_be_guessed_lose_no_more_than_the_bound(
    num_texts: int, seconds: Callable[[int], float]
) -> None:
    rng = random.Random(3)
    machine = Machine([_noise(rng) for _ in range(num_texts)], 500, seconds)
    machine.run(1500)
    assert machine.plain_s >= 0.97 * machine.spent_s


@pytest.mark.parametrize("num_texts", [1, 4, 16])
@pytest.mark.parametrize("share", [0.05, 0.3, 1.0])
def test_on_a_tiny_model_drafts_whose_cost_is_fixed_lose_no_more_than_the_bound(num_texts: int, share: float) -> None:
    """A row costs nothing there, but to search a text and to compute drafts take a share of a step each: by the time of
    the network, guesses seem to pay."""
    rng = random.Random(6)
    machine = Machine(
        [_code(rng) for _ in range(num_texts)],
        500,
        lambda rows: 1 + rows / 100,
        search_s=share / num_texts,
        rebuild_s=share,
    )
    machine.run(600)
    assert machine.plain_s >= 0.97 * machine.spent_s


def test_where_searches_find_nothing_they_become_rare() -> None:
    rng = random.Random(7)
    machine = Machine([[rng.randrange(50_000) for _ in range(9000)]], 500, search_s=0.1)
    machine.run(4000)
    first = machine.num_searches
    machine.run(4000)
    assert first < 0.1 * 4000 and machine.num_searches - first < 0.06 * 4000


def test_in_a_pause_a_step_is_neither_searched_nor_measured_until_a_new_request_comes() -> None:
    rng = random.Random(8)
    machine = Machine([[rng.randrange(50_000) for _ in range(9000)]], 500, search_s=0.5)
    speculator = machine.speculator
    while speculator._num_idle < 200:
        machine.run(1)
    for _ in range(150):  # until the loss is within its bound again
        machine.run(1)
        assert not speculator.is_measuring
    speculator.source(_request(1, [1, 2]), ())
    machine.run(1)
    assert speculator.is_measuring


def test_a_text_that_can_be_guessed_gets_its_drafts_beside_others_that_cannot() -> None:
    rng = random.Random(4)
    machine = Machine([_copies(rng, 0.0), *(_noise(rng) for _ in range(7))], 1500)
    machine.run(150)
    assert machine.lengths[0] - 1500 > 3 * (machine.lengths[1] - 1500)


def test_steps_without_drafts_recur() -> None:
    machine = Machine([_copies(random.Random(5), 0.0) * 2], 1500)
    lengths = []
    for _ in range(70):
        before = machine.lengths[0]
        machine.run(1)
        lengths.append(machine.lengths[0] - before)
    assert lengths[40:].count(1) in (1, 2) and max(lengths) > 10


def test_nothing_is_drafted_before_steps_without_drafts_were_measured() -> None:
    speculator, answers = Speculator(SHAPE), []
    for _ in range(QUIET_STEPS + MIN_STEPS):
        answers.append(speculator.may_draft(1))
        speculator.record(StepTime(1, 1, 0, 1.0))
    assert answers == [False] * (QUIET_STEPS - 1 + MIN_STEPS) + [True]
    assert not speculator.may_draft(2)


@pytest.mark.parametrize(("num_requests", "is_searched"), [(MAX_REQUESTS, True), (MAX_REQUESTS + 1, False)])
def test_beside_very_many_requests_no_text_is_searched(
    num_requests: int, is_searched: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    searched: list[int] = []
    monkeypatch.setattr(DraftSource, "propose", lambda _, token_ids, max_len, grammar: searched.append(len(token_ids)))
    speculator = _measured(num_requests)
    candidate = Candidate(speculator.source(_request(0, [1, 2]), ()), [1, 2, 3], 10)
    if speculator.may_draft(num_requests):
        assert speculator.choose([candidate], num_requests, 100) == [()]
    assert searched == [3] * is_searched


def _measured(num_rows: int) -> Speculator:
    """Return a speculator that knows the time of steps of so many rows without drafts."""
    speculator = Speculator(SHAPE)
    for _ in range(10):
        speculator.may_draft(num_rows)
        if speculator._is_searching:
            break
        speculator.record(StepTime(num_rows, num_rows, 0, 1.0))
    return speculator


def test_drafts_never_exceed_what_the_step_has_room_for() -> None:
    speculator, tokens = _measured(8), list(range(50)) * 2
    source = speculator.source(_request(9, tokens), ())
    for length in range(60, 100):  # learns that its guesses are right
        source.propose(tokens[:length], 1)
    candidates = [Candidate(speculator.source(_request(i, tokens), ()), tokens, 3) for i in range(8)]
    for room in (0, 1, 5, 1000):
        drafts = speculator.choose(candidates, 8, room)
        assert sum(map(len, drafts)) <= room and max(map(len, drafts)) <= 3
    assert any(drafts)


@pytest.mark.parametrize("seed", range(20))
def test_the_likeliest_tokens_are_kept(seed: int) -> None:
    rng = random.Random(seed)
    chances = [sorted((rng.choice((0.2, 0.5, 0.9, rng.random())) for _ in range(rng.randint(0, 6))), reverse=True)]
    chances += [list(chances[0]), [], [0.9, 0.5, 0.5]]
    ordered = sorted((chance for of_draft in chances for chance in of_draft), reverse=True)
    for count in range(len(ordered) + 1):
        lengths = _lengths_of(chances, ordered[:count])
        kept = [chance for of_draft, length in zip(chances, lengths, strict=True) for chance in of_draft[:length]]
        assert sorted(kept, reverse=True) == ordered[:count]


def _drafts(
    chances: Sequence[float], num_copies: int, num_rows: int, row_s: float, *, is_shared: bool = False
) -> list[int]:
    """Return the lengths of drafts that all have these chances, where a row takes `row_s` of the time of a step of
    `num_rows` rows, and has been measured."""
    speculator = _measured(num_rows)
    for rows in range(num_rows + 1, num_rows + 200):
        speculator._draft_times.record(1.0, num_rows, rows, 1.0 + row_s * (rows - num_rows))
    candidates = [Candidate(_FixedSource(chances), [1], 100) for _ in range(num_copies)]
    return [len(draft) for draft in speculator.choose(candidates, num_rows, 1000, is_shared=is_shared)]


class _FixedSource(DraftSource):
    """Proposes a draft of these chances."""

    def __init__(self, chances: Sequence[float]) -> None:
        self._chances = tuple(chances)

    def propose(self, token_ids: Sequence[int], max_len: int, grammar: Grammar | None = None) -> Draft:
        return Draft(tuple(range(len(self._chances))), self._chances)


def test_a_long_guess_waits_until_its_first_token_is_known() -> None:
    """Alone, where a row takes a tenth of a step: if the first token is right in 3 of 10 cases, 7/10 of the rows' time
    are wasted on average, and waiting a step costs 3/10 of its time."""
    assert _drafts([0.3] * 10, 1, 1, 0.1) == [4]
    assert _drafts([0.9] * 10, 1, 1, 0.1) == [10]


def test_a_request_without_a_draft_is_slowed_down_by_a_bounded_factor() -> None:
    lengths = _drafts([0.99**place for place in range(1, 33)], 8, 8, 0.05)
    assert sum(lengths) > 100
    lengths = _drafts([0.99**place for place in range(1, 33)], 7, 8, 0.05)
    assert 1 + 0.05 * sum(lengths) <= MAX_STRETCH < 1 + 0.05 * (sum(lengths) + 17)


@pytest.mark.parametrize("num_candidates", [7, 8])
def test_drafts_stretch_steps_that_tenants_share_less(num_candidates: int) -> None:
    lengths = _drafts([0.99**place for place in range(1, 33)], num_candidates, 8, 0.05, is_shared=True)
    assert sum(lengths) > 0
    assert 1 + 0.05 * sum(lengths) <= MAX_SHARED_STRETCH


def test_a_step_of_few_rows_that_was_slow_once_does_not_keep_longer_drafts_waiting() -> None:
    speculator = _measured(8)
    for rows in (*range(9, 60), *range(9, 60)):  # the first step of a size counts only if it was fast
        speculator._draft_times.record(1.0, 8, rows, 1.0 if rows != 10 else 2 * MAX_STRETCH)
    candidates = [Candidate(_FixedSource([0.9] * 6), [1], 100) for _ in range(7)]
    assert all(len(draft) == 6 for draft in speculator.choose(candidates, 8, 1000))


@pytest.mark.parametrize("every", [5, 10, 50, 200])
def test_searches_that_find_nothing_cost_little_however_often_a_new_text_comes(every: int) -> None:
    """A search takes three tenths of a step, and no text repeats anything."""
    rng = random.Random(every)
    machine = Machine([[rng.randrange(10**6) for _ in range(9000)] for _ in range(4)], 10, search_s=0.3 * SHAPE(4) / 4)
    for number in range(8000 // every):
        machine.speculator.source(_request(4 + number, [1]), ())
        machine.run(every)
    assert machine.num_searches > 5
    assert 1 < machine.spent_s / machine.plain_s < 1.02


def test_requests_whose_guesses_are_not_worth_it_wait_no_longer_than_those_without() -> None:
    speculator = _measured(8)
    for _ in range(40):
        speculator._draft_times.record(1.0, 8, 8 + 7 * 20, 10.0)
    likely = [Candidate(_FixedSource([0.95] * 20), [1], 100) for _ in range(7)]
    for last in (_FixedSource([]), _FixedSource([0.01])):
        candidates = [*likely, Candidate(last, [1], 100)]
        speculator.choose(candidates, 8, 1000)
        last.account = replace(last.account, left_s=0.0) if last.account else None
        num_drafted = sum(map(len, speculator.choose(candidates, 8, 1000)))
        assert speculator._draft_times.predict(1.0, 8, 8 + num_drafted) <= MAX_STRETCH


@pytest.mark.parametrize("seed", range(3))
def test_a_draft_has_only_tokens_of_its_own_request(seed: int) -> None:
    """Five requests share all of their tokens but one each, which they have between the same fragments: text of another
    request, whatever tenant it has, would often continue a request's better, and would bring the other's token."""
    rng = random.Random(seed)
    fragments = [[rng.randrange(50) for _ in range(rng.randint(3, 9))] for _ in range(4)]
    secrets = range(1000, 1005)
    texts = [[t for _ in range(60) for t in (*rng.choice(fragments), secret)] for secret in secrets]
    drafter, seen = EagerDrafter(), 0
    sources = [drafter.source(_request(i, text[:40]), ()) for i, text in enumerate(texts)]
    for length in range(40, 200):
        candidates = [Candidate(s, text[:length], 16) for s, text in zip(sources, texts, strict=True)]
        for index, draft in enumerate(drafter.choose(candidates, 5, 1000)):
            assert not set(draft) & set(secrets) - {secrets[index]}
            seen += secrets[index] in draft
    assert seen > 300
