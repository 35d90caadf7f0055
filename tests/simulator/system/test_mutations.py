"""The simulator finds every hand-made bug of the whole system. Table: python -m tests.simulator.system.mutations"""

import pytest

from tests.simulator.bugs.edits import Mutation
from tests.simulator.mutations import find_killing_seed
from tests.simulator.system.bugs import FOUND_LATE, SYSTEM_BUGS
from tests.simulator.system.schedule import run_seed

MAX_SEEDS = 1000


@pytest.mark.parametrize("mutation", SYSTEM_BUGS, ids=lambda mutation: mutation.name)
def test_a_bug_of_the_whole_system_is_found(mutation: Mutation) -> None:
    """Tries the seed that is known to find it first."""
    assert find_killing_seed(mutation, MAX_SEEDS, FOUND_LATE.get(mutation.name), run_seed) is not None
