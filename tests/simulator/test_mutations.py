"""The simulator finds bugs: each of those made by hand is seen. The whole table: python -m tests.simulator.mutations"""

import pytest

from tests.simulator.bugs import FOUND_LATE, MUTATIONS, Edit, Mutation
from tests.simulator.mutations import applied, killer

MAX_SEEDS = 1000


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name)
def test_a_bug_is_found(mutation: Mutation) -> None:
    """By the seed that is known to, or else by searching."""
    assert killer(mutation, MAX_SEEDS, FOUND_LATE.get(mutation.name)) is not None


def test_a_bug_whose_text_is_gone_is_no_bug() -> None:
    stale = Mutation("stale", (Edit("scheduler:Scheduler.abort", "no such text", ""),))
    with pytest.raises(ValueError, match="0 times"), applied(stale):
        pass
