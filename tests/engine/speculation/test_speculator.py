"""Lengths of drafts under a known machine: simulated step times, texts with known rates of right guesses."""

import random
from collections.abc import Callable

import pytest

from engine.speculation.row_times import time_shape
from engine.speculation.speculator import MAX_DRAFTED, Candidate, Speculator, StepTime
from engine.types import Request, SamplingParams
from tests.support.guessing_drafter import EagerDrafter

SHAPE = time_shape(8, 2)


def _request(number: int, prompt: list[int]) -> Request:
    return Request(number, prompt, SamplingParams(max_tokens=10_000))


class Machine:
    """Generates texts token by token, with drafts, and adds up the time of the steps."""

    def __init__(self, texts: list[list[int]], prompt_len: int, seconds: Callable[[int], float] = SHAPE) -> None:
        self.speculator = Speculator(SHAPE)
        self.texts = texts
        self.lengths = [prompt_len + 1] * len(texts)
        self.sources = [self.speculator.source(_request(i, t[:prompt_len]), ()) for i, t in enumerate(texts)]
        self.seconds = seconds
        self.spent_s = self.plain_s = 0.0
        self.most_drafted = 0

    def run(self, num_steps: int) -> None:
        """Run steps until a text ends; `plain_s` becomes the time in which steps without drafts give as many tokens."""
        for _ in range(num_steps):
            if any(length + 20 > len(text) for text, length in zip(self.texts, self.lengths, strict=True)):
                return
            candidates = [
                Candidate(source, text[:length], 100)
                for source, text, length in zip(self.sources, self.texts, self.lengths, strict=True)
            ]
            drafts = self.speculator.choose(candidates, len(candidates), 1000)
            self._step(drafts)

    def _step(self, drafts: list[tuple[int, ...]]) -> None:
        num_accepted = 0
        for index, draft in enumerate(drafts):
            text, length = self.texts[index], self.lengths[index]
            count = next((i for i, t in enumerate(draft) if t != text[length + i]), len(draft))
            self.lengths[index] += count + 1
            num_accepted += count
        num_drafted = sum(map(len, drafts))
        self.most_drafted = max(self.most_drafted, num_drafted)
        seconds = self.seconds(len(drafts) + num_drafted)
        self.spent_s += seconds
        self.plain_s += self.seconds(len(drafts)) * (1 + num_accepted / len(drafts))
        self.speculator.record(StepTime(len(drafts), len(drafts) + num_drafted, num_accepted, seconds))


def _copies(rng: random.Random, change: float) -> list[int]:
    """A text whose second half is its first half with some tokens changed."""
    first = [rng.randrange(30_000) for _ in range(1500)]
    return first + [rng.randrange(30_000) if rng.random() < change else token for token in first]


def _noise(rng: random.Random) -> list[int]:
    """A text in which every token pair occurs often and says nothing about the next token."""
    return [rng.randrange(12) for _ in range(3000)]


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


def test_a_text_that_can_be_guessed_gets_its_drafts_beside_others_that_cannot() -> None:
    rng = random.Random(4)
    machine = Machine([_copies(rng, 0.0), *(_noise(rng) for _ in range(7))], 1500)
    machine.run(150)
    assert machine.lengths[0] - 1500 > 3 * (machine.lengths[1] - 1500)


def test_steps_without_drafts_recur() -> None:
    machine = Machine([_copies(random.Random(5), 0.0)], 1500)
    lengths = []
    for _ in range(70):
        before = machine.lengths[0]
        machine.run(1)
        lengths.append(machine.lengths[0] - before)
    assert lengths[40:].count(1) in (1, 2) and max(lengths) > 10


def test_nothing_is_drafted_before_a_step_without_drafts_was_measured() -> None:
    speculator = Speculator(SHAPE)
    tokens = [1, 2, 3, 1, 2]
    candidate = Candidate(speculator.source(_request(0, tokens), ()), tokens, 10)
    assert speculator.choose([candidate], 1, 100) == [()]


def test_drafts_never_exceed_what_the_step_has_room_for() -> None:
    speculator, tokens = Speculator(SHAPE), list(range(50)) * 2
    for _ in range(10):
        speculator.record(StepTime(8, 8, 0, 1.0))
    candidates = [Candidate(speculator.source(_request(i, tokens), ()), tokens, 3) for i in range(8)]
    for room in (0, 1, 5, 1000):
        drafts = speculator.choose(candidates, 8, room)
        assert sum(map(len, drafts)) <= room and max(map(len, drafts)) <= 3
    assert any(drafts)


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
