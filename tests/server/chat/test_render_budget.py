"""server/chat/render_budget.py: each limit is exact."""

import pytest

from server.chat.render_budget import (
    MAX_CHARS,
    MAX_STEPS,
    RenderBudget,
    TemplateBudgetExceeded,
    bounded_join,
    check_repetition,
    result_steps,
)


def test_the_steps_of_one_rendering_are_counted() -> None:
    budget = RenderBudget()
    for _ in range(MAX_STEPS):
        budget.charge()
    with pytest.raises(TemplateBudgetExceeded, match=str(MAX_STEPS)):
        budget.charge()


def test_a_joined_text_ends_at_its_limit_before_later_pieces_are_made() -> None:
    assert bounded_join(["a", "", "b" * (MAX_CHARS - 1)]) == "a" + "b" * (MAX_CHARS - 1)
    pieces = iter(["b" * MAX_CHARS, "c", "never"])
    with pytest.raises(TemplateBudgetExceeded):
        bounded_join(pieces)
    assert next(pieces) == "never"


def test_products_are_bounded_by_bits_and_repetitions_by_characters() -> None:
    check_repetition(2**100, 2**100)
    with pytest.raises(TemplateBudgetExceeded, match="bits"):
        check_repetition(2**200, 2**100)
    check_repetition("ab", MAX_CHARS // 2)
    with pytest.raises(TemplateBudgetExceeded, match="characters"):
        check_repetition(MAX_CHARS, "ab")


def test_a_calls_arguments_multiply() -> None:
    RenderBudget().check_product("x" * 1000, 1000, None, True, -100)
    with pytest.raises(TemplateBudgetExceeded):
        RenderBudget().check_product("x" * 1000, 1000, -1000)
    RenderBudget(max_steps=10).check_product("x" * 64, 10)
    with pytest.raises(TemplateBudgetExceeded):
        RenderBudget(max_steps=10).check_product("x" * 64, 11)


def test_a_value_is_charged_as_often_as_it_is_in_there() -> None:
    budget = RenderBudget(max_steps=1000)
    budget.charge_value({"a": ["x" * 640, 1], "b": (2,)})  # 2 + 1 dict, 2 keys, 2 + 1 and 1 + 1 lists, 10 + 1, 1, 1
    budget.charge(1000 - 23)
    with pytest.raises(TemplateBudgetExceeded):
        budget.charge()
    value: list[object] = []
    for _ in range(60):
        value = [value, value]
    with pytest.raises(TemplateBudgetExceeded):
        RenderBudget().charge_value(value)


def test_a_built_text_or_list_is_charged_by_its_size() -> None:
    assert result_steps("+", "x" * 640, "y") == 10
    assert result_steps("+", [1] * 7, [2]) == 8
    assert result_steps("*", [0], 8_000_000) == 8_000_000
    assert result_steps("*", 64, "ab") == 2
    assert result_steps("*", 10**9, 10**9) == result_steps("+", 1, 2) == 0
