"""One tenant never takes all running slots, unless there is only one."""

import pytest

from engine.config import max_slots_per_tenant


@pytest.mark.parametrize(("num_slots", "per_tenant"), [(1, 1), (2, 1), (3, 2), (8, 7), (15, 14), (16, 14), (256, 224)])
def test_an_eighth_of_the_running_slots_stays_free(num_slots: int, per_tenant: int) -> None:
    assert max_slots_per_tenant(num_slots) == per_tenant
