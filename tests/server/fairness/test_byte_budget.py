"""server/fairness/byte_budget.py."""

from server.fairness.byte_budget import ByteBudget


def test_it_refuses_what_does_not_fit_and_takes_it_when_there_is_room() -> None:
    budget = ByteBudget(100)
    assert budget.try_take(0, 60)
    assert not budget.try_take(1, 41)
    assert budget.try_take(1, 40)
    budget.give_back(0, 60)
    assert budget.used_bytes == 40
    assert budget.try_take(1, 60)


def test_of_several_tenants_none_takes_all() -> None:
    budget = ByteBudget(160, num_tenants=2)
    assert budget.try_take(0, 140)
    assert not budget.try_take(0, 1)
    assert budget.try_take(1, 20)


def test_something_larger_than_the_budget_fits_alone() -> None:
    budget = ByteBudget(10)
    assert budget.try_take(0, 50)
    assert not budget.try_take(0, 1)
    budget.give_back(0, 50)
    assert budget.try_take(0, 1)


def test_a_smaller_bound_refuses_until_enough_was_given_back() -> None:
    budget = ByteBudget(100, num_tenants=2)
    assert budget.try_take(0, 60)
    budget.resize(40)
    assert not budget.try_take(1, 1)
    budget.give_back(0, 30)
    assert budget.try_take(1, 10)
    budget.give_back(0, 30)
    assert not budget.try_take(1, 26)  # 36 of 40 bytes, and one tenant may have 35
    assert budget.try_take(0, 26)
