"""Fakes of the Speculator, whose drafts do not depend on measured times."""

import random
from collections.abc import Callable, Collection, Sequence
from typing import Any

from engine.speculation.row_times import time_shape
from engine.speculation.speculator import Candidate, Speculator, StepTime
from engine.types import Request


class FakeSource:
    """Knows the request whose drafts it stands for."""

    def __init__(self, request: Request) -> None:
        self.request = request


class GuessingDrafter:
    """Drafts random lengths, of which a random number of tokens is right and the next ones are random.

    `oracle` returns the tokens that a request generates; it may have more of them than the request. Some drafts are
    what the request's grammar forces.
    """

    is_measuring = True

    def __init__(self, rng: random.Random, oracle: Callable[[Request], list[int]], vocab: int) -> None:
        self._rng = rng
        self._oracle = oracle
        self._vocab = vocab
        self._tokens: dict[int, list[int]] = {}
        self.num_accepted = 0

    def source(self, request: Request, end_token_ids: Collection[int]) -> Any:
        self._tokens[request.request_id] = self._oracle(request)
        return FakeSource(request)

    def may_draft(self, num_rows: int) -> bool:
        return True

    def choose(
        self, candidates: Sequence[Candidate], num_rows: int, max_drafted: int, *, is_shared: bool = False
    ) -> list[tuple[int, ...]]:
        drafts = []
        for candidate in candidates:
            draft = self._draft(candidate, max_drafted)
            max_drafted -= len(draft)
            drafts.append(draft)
        return drafts

    def _draft(self, candidate: Candidate, max_drafted: int) -> tuple[int, ...]:
        length = min(candidate.max_len, max_drafted, self._rng.choice([0, 1, 2, 5, 9]))
        if candidate.grammar is not None and self._rng.random() < 0.5:
            forced = candidate.grammar.forced_tokens(length)
            if self._rng.random() < 0.5:
                return self._with_wrong(forced[: self._rng.randint(0, length)], length)
        source: Any = candidate.source
        request = source.request
        num_generated = len(candidate.token_ids) - len(request.prompt_token_ids)
        right = self._tokens[request.request_id][num_generated : num_generated + self._rng.randint(0, length)]
        return self._with_wrong(right, length)

    def _with_wrong(self, start: list[int], length: int) -> tuple[int, ...]:
        return (*start, *(self._rng.randrange(self._vocab) for _ in range(length - len(start))))

    def record(self, step: StepTime) -> None:
        self.num_accepted += step.num_accepted


class EagerDrafter(Speculator):
    """Drafts all that the product's sources propose."""

    def __init__(self) -> None:
        super().__init__(time_shape(8, 2))
        self.num_accepted = 0

    def may_draft(self, num_rows: int) -> bool:
        return True

    def choose(
        self, candidates: Sequence[Candidate], num_rows: int, max_drafted: int, *, is_shared: bool = False
    ) -> list[tuple[int, ...]]:
        drafts: list[tuple[int, ...]] = []
        for candidate in candidates:
            draft = candidate.source.propose(
                candidate.token_ids, min(candidate.max_len, max_drafted), candidate.grammar
            )
            drafts.append(draft.token_ids if draft else ())
            max_drafted -= len(drafts[-1])
        return drafts

    def record(self, step: StepTime) -> None:
        self.num_accepted += step.num_accepted
