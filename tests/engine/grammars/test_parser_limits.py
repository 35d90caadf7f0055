"""engine/grammars/parser_limits.py: the bound on parsers from the memory limit."""

import pytest

from engine.grammars.parser_limits import DEFAULT_BYTES, PARSER_BYTES, SHARE_OF_LIMIT, max_parsers

GIB = 1 << 30


@pytest.mark.parametrize("gib", [0.1, 0.6, 1, 2, 24, 1000])
def test_parsers_take_at_most_their_share_of_the_memory_and_one_may_live(gib: float) -> None:
    count = max_parsers(int(gib * GIB))
    assert count >= 1
    assert count == 1 or count * PARSER_BYTES <= gib * GIB / SHARE_OF_LIMIT
    assert (count + 1) * PARSER_BYTES > gib * GIB / SHARE_OF_LIMIT


def test_without_a_known_limit_they_have_a_fixed_share() -> None:
    assert max_parsers(None) == max_parsers(DEFAULT_BYTES * SHARE_OF_LIMIT)


@pytest.mark.parametrize(("share", "expected"), [(1.0, 64), (0.75, 33), (0.5, 2), (0.0, 1)])
def test_where_memory_is_short_fewer_parsers_may_live_and_always_one(share: float, expected: int) -> None:
    assert max_parsers(24 * GIB, share) == expected
    assert max_parsers(GIB // 10, share) == 1
