"""Rows of logits of chunks with drafts: which sampled tokens count, and which rows of the step.

Letters: N rows of logits, T rows of the step.
"""

from collections.abc import Sequence
from typing import NamedTuple

from engine.scheduling.step_plan import Chunk, Sampled
from engine.speculation.acceptance import num_accepted
from model.sampling_batch import Status


class DraftRows(NamedTuple):
    """Rows of logits of one chunk with a draft of m tokens: `first` for the token behind the last known one, then m
    rows, each behind one more drafted token."""

    first: int  # among the N rows
    draft: tuple[int, ...]

    @property
    def rows(self) -> range:
        return range(self.first, self.first + len(self.draft) + 1)


def draft_rows(chunks: Sequence[Chunk]) -> tuple[DraftRows, ...]:
    """Return the rows of logits of each chunk with a draft."""
    found = []
    first = 0
    for chunk in chunks:
        if chunk.draft:
            found.append(DraftRows(first, chunk.draft))
        first += chunk.samples + len(chunk.draft)
    return tuple(found)


def guesses_before(drafts: Sequence[DraftRows]) -> dict[int, tuple[int, ...]]:
    """Return the drafted tokens that each row of these drafts is behind."""
    return {row: drafted.draft[: row - drafted.first] for drafted in drafts for row in drafted.rows}


def known_rows(drafts: Sequence[DraftRows], num_rows: int) -> list[int]:
    """Return those of the first `num_rows` rows that are behind known tokens alone."""
    known: list[int] = []
    first = 0
    for drafted in drafts:
        known += range(first, drafted.first + 1)
        first = drafted.rows.stop
    known += range(first, num_rows)
    return known


def count_accepted(drafted: DraftRows, token_ids: Sequence[int], status: Sequence[int]) -> int:
    """Return how many drafted tokens are right, given the sampled tokens [N] and their status [N].

    A row without a token ends the count before it: its request fails when it samples there with no draft.
    """
    sampled = [token_ids[row] for row in drafted.rows]
    count = num_accepted(drafted.draft, sampled)
    for place in range(1, count + 1):
        if status[drafted.first + place] != Status.DONE:
            return place - 1
    return count


def kept_rows(chunks: Sequence[Chunk], behind_drafts: dict[int, list[Sampled]], spoiled: set[int]) -> list[slice]:
    """Return the rows of the step, of its T, that hold known tokens or accepted drafted ones. `spoiled`: ids of the
    requests whose rows all do not count."""
    kept: list[slice] = []
    first = 0
    for chunk in chunks:
        request_id = chunk.sequence.request_id
        count = chunk.length - len(chunk.draft) + len(behind_drafts.get(request_id, ()))
        if not (chunk.draft and request_id in spoiled):
            kept.append(slice(first, first + count))
        first += chunk.length
    return kept
