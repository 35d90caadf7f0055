"""Rows of a step with drafts: those that count, and those that do not."""

import pytest

from engine.execution.draft_rows import DraftRows, count_accepted, guesses_before, kept_rows, known_rows
from engine.scheduling.sequence import Sequence
from engine.scheduling.step_plan import Chunk, Sampled
from engine.types import Request, SamplingParams
from model.sampling_batch import Status

DONE, NO_TOKEN = Status.DONE, Status.NO_TOKEN


@pytest.mark.parametrize(
    ("token_ids", "status", "count"),
    [
        ([0, 5, 6, 7, 8], [DONE] * 5, 3),
        ([0, 5, 6, 9, 8], [DONE] * 5, 2),
        ([0, 5, 6, 7, 0], [DONE] * 4 + [NO_TOKEN], 2),  # fails at its own time, without a draft
        ([0, 5, 0, 7, 8], [DONE, DONE, NO_TOKEN, DONE, DONE], 0),
    ],
)
def test_drafted_tokens_count_until_one_is_wrong_or_its_row_has_no_token(
    token_ids: list[int], status: list[int], count: int
) -> None:
    assert count_accepted(DraftRows(1, (5, 6, 7)), token_ids, status) == count


def test_rows_of_wrong_tokens_and_of_spoiled_requests_are_not_kept() -> None:
    def chunk(request_id: int, length: int, draft: tuple[int, ...]) -> Chunk:
        sequence = Sequence(Request(request_id, [1], SamplingParams()), (0, 0), 9)
        return Chunk(sequence, 4, length, samples=True, is_prefill=False, draft=draft)

    chunks = [chunk(1, 2, ()), chunk(2, 4, (5, 6, 7)), chunk(3, 3, (8, 9)), chunk(4, 1, ())]
    kept = kept_rows(chunks, {2: [Sampled(5)]}, {3})
    assert [row for part in kept for row in range(part.start, part.stop)] == [0, 1, 2, 3, 9]


def test_rows_behind_known_tokens_and_the_guesses_before_each_of_the_others() -> None:
    drafts = [DraftRows(1, (5, 6)), DraftRows(4, (7,))]
    assert known_rows(drafts, 8) == [0, 1, 4, 6, 7] and known_rows([], 2) == [0, 1]
    assert guesses_before(drafts) == {1: (), 2: (5,), 3: (5, 6), 4: (), 5: (7,)}
