"""The simulator finds every hand-made bug. Full table: python -m tests.simulator.mutations"""

import pytest

from tests.simulator.bugs import FOUND_LATE, MUTATIONS
from tests.simulator.bugs.edits import Edit, Mutation
from tests.simulator.mutations import applied, find_killing_seed

MAX_SEEDS = 1000


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name)
def test_a_bug_is_found(mutation: Mutation) -> None:
    """Tries the seed that is known to find it first."""
    assert find_killing_seed(mutation, MAX_SEEDS, FOUND_LATE.get(mutation.name)) is not None


def test_an_edit_whose_text_is_gone_is_an_error() -> None:
    stale = Mutation("stale", (Edit("scheduling.scheduler:Scheduler.abort", "no such text", ""),))
    with pytest.raises(ValueError, match="0 times"), applied(stale):
        pass
