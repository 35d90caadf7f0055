"""server/chat/render_budget.py: each limit is exact."""

import pytest

from server.chat.render_budget import (
    MAX_CHARS,
    MAX_STEPS,
    RenderBudget,
    TemplateBudgetExceeded,
    bounded_join,
    check_product,
    check_repetition,
)


def test_the_steps_of_one_rendering_are_counted() -> None:
    budget = RenderBudget()
    for _ in range(MAX_STEPS):
        budget.step()
    with pytest.raises(TemplateBudgetExceeded, match=str(MAX_STEPS)):
        budget.step()


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
    check_product("x" * 1000, 1000, None, True, -100)
    with pytest.raises(TemplateBudgetExceeded):
        check_product("x" * 1000, 1000, -1000)
