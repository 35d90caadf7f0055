"""engine/grammars/parser_limits.py: bounds on parsers from the memory limit."""

import pytest

from engine.grammars.parser_limits import DEFAULT_BYTES, SHARE_OF_LIMIT, parser_limits

GIB = 1 << 30


@pytest.mark.parametrize("gib", [0.1, 0.6, 1, 2, 24, 1000])
def test_parsers_take_at_most_their_share_of_the_memory_and_one_of_each_kind_may_live(gib: float) -> None:
    limits = parser_limits(int(gib * GIB))
    assert limits.num_requests >= 1 and limits.num_choices >= 1
    assert limits.num_bytes <= max(gib * GIB / SHARE_OF_LIMIT, parser_limits(0).num_bytes)
    assert limits.num_bytes > 0.9 * gib * GIB / SHARE_OF_LIMIT - parser_limits(0).num_bytes


def test_without_a_known_limit_they_have_a_fixed_share() -> None:
    assert parser_limits(None) == parser_limits(DEFAULT_BYTES * SHARE_OF_LIMIT)
