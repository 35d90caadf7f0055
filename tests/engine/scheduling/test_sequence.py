"""Progress of one request: positions to schedule, block hashes, and preemption."""

from typing import Any

import pytest

from engine.scheduling.block_hash import child_hash, root_hash
from engine.scheduling.sequence import Matcher, Sequence, Status
from engine.token_constraints import token_constraints
from engine.types import Request, SamplingParams


class _AnyToken:
    def prepare(self, token_ids: object, start: int) -> bool:
        return True

    def wait(self, timeout_s: float) -> None:
        pass

    def bitmask(self, token_ids: object, start: int) -> bytes:
        return b""


def _sequence(max_generated: int = 4, matcher: Matcher | None = None, **params: Any) -> Sequence:
    return Sequence(Request(0, [1, 2, 3, 4, 5], SamplingParams(**params)), (0, 0), max_generated, matcher)


def test_a_prompt_needs_the_positions_that_are_not_scheduled() -> None:
    sequence = _sequence()
    assert sequence.num_to_schedule == 5
    sequence.num_scheduled = 3
    assert sequence.num_to_schedule == 2


def test_with_a_token_in_flight_the_next_position_can_be_scheduled() -> None:
    sequence = _sequence()
    sequence.num_scheduled, sequence.num_pending_tokens = 5, 1
    assert sequence.num_tokens == 6 and sequence.num_to_schedule == 1


def test_behind_the_last_token_nothing_is_scheduled() -> None:
    sequence = _sequence(max_generated=1)
    sequence.num_scheduled, sequence.num_pending_tokens = 5, 1
    assert sequence.num_to_schedule == 0


@pytest.mark.parametrize(
    "needs_last", [{"matcher": _AnyToken()}, {"constraints": token_constraints(bad_words=[(7, 8)])}]
)
def test_a_grammar_or_a_bad_word_of_two_tokens_waits_for_the_token_in_flight(needs_last: dict[str, Any]) -> None:
    sequence = _sequence(**needs_last)
    assert sequence.num_to_schedule == 5
    sequence.num_scheduled, sequence.num_pending_tokens = 5, 1
    assert sequence.num_to_schedule == 0


def test_block_hashes_are_a_chain_over_the_full_blocks() -> None:
    first = child_hash(root_hash(""), [1, 2])
    sequence = _sequence()
    assert sequence.block_hash(1, 2) == child_hash(first, [3, 4])
    assert sequence.block_hash(0, 2) == first
    with pytest.raises(AssertionError, match="full block"):
        sequence.block_hash(2, 2)


def test_a_restart_keeps_the_generated_tokens() -> None:
    sequence = _sequence()
    sequence.status = Status.RUNNING
    sequence.token_ids.append(9)
    sequence.num_computed = sequence.num_scheduled = 6
    sequence.block_table = [1, 2]
    sequence.restart()
    assert sequence.token_ids == [1, 2, 3, 4, 5, 9] and sequence.num_to_schedule == 6
    assert sequence.status is Status.WAITING and not sequence.block_table and sequence.num_preemptions == 1
