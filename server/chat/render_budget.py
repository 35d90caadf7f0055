"""Limits on one rendering of a chat template: steps, lengths of texts, sizes of numbers."""

from collections.abc import Iterable

MAX_CHARS = 8 << 20  # of the rendered text and of each intermediate one
MAX_STEPS = 500_000  # loop turns and calls in one rendering
MAX_PRODUCT = 1 << 27  # of the sizes of one call's arguments, which bounds the size of any method's result
MAX_INT_BITS = 256


class TemplateBudgetExceeded(Exception):
    """Template that needs more work or text than one rendering may take."""


class RenderBudget:
    """Counter of the steps of one rendering."""

    def __init__(self) -> None:
        self._steps_left = MAX_STEPS

    def step(self) -> None:
        """Count one loop turn or call. Raises TemplateBudgetExceeded beyond MAX_STEPS."""
        self._steps_left -= 1
        if self._steps_left < 0:
            raise TemplateBudgetExceeded(f"it takes more than {MAX_STEPS} steps")


def bounded_join(pieces: Iterable[str]) -> str:
    """Join pieces of text. Raises TemplateBudgetExceeded beyond MAX_CHARS."""
    checked: list[str] = []
    num_chars = 0
    for piece in pieces:
        num_chars += len(piece)
        check_chars(num_chars)
        checked.append(piece)
    return "".join(checked)


def check_chars(num_chars: int) -> None:
    """Raise TemplateBudgetExceeded for a text beyond MAX_CHARS."""
    if num_chars > MAX_CHARS:
        raise TemplateBudgetExceeded(f"it makes a text of more than {MAX_CHARS} characters")


def check_repetition(left: object, right: object) -> None:
    """Check `left * right`: a product of numbers, or a repeated text or list. Raises TemplateBudgetExceeded."""
    if isinstance(left, int) and isinstance(right, int):
        if left.bit_length() + right.bit_length() > MAX_INT_BITS:
            raise TemplateBudgetExceeded(f"it computes a number of more than {MAX_INT_BITS} bits")
        return
    check_chars(_size(left) * _size(right))


def check_product(*arguments: object) -> None:
    """Bound a call by the product of its arguments' sizes: no padding, replacing or formatting makes a longer text."""
    product = 1
    for argument in arguments:
        product *= _size(argument)
    if product > MAX_PRODUCT:
        raise TemplateBudgetExceeded(f"one of its calls could make a text of more than {MAX_PRODUCT} characters")


def _size(value: object) -> int:
    """Return the factor, at least 1, by which an argument may lengthen a result."""
    if isinstance(value, bool):
        return 1
    if isinstance(value, int):
        return max(1, abs(value))
    return max(1, len(value)) if isinstance(value, str | list | tuple) else 1
