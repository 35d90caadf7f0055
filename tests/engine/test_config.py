"""One tenant never takes all running slots, unless there is only one."""

import pytest

from engine.config import share_of_places


@pytest.mark.parametrize(("num_places", "share"), [(1, 1), (2, 1), (3, 2), (8, 7), (15, 14), (16, 14), (256, 224)])
def test_an_eighth_of_the_running_slots_stays_free(num_places: int, share: int) -> None:
    assert share_of_places(num_places) == share
