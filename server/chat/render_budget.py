"""Limits on one rendering of a chat template: steps, lengths of texts, sizes of numbers.

A step is a loop turn, a look-up in a loop or macro, an element of a list or dict that an operation reads, or
CHARS_PER_STEP characters of a text that it reads or writes; a call or a sum takes STEPS_PER_CALL. So the steps bound
the time: 0.1 to 0.7 us each.
"""

from collections.abc import Iterable

MAX_CHARS = 8 << 20  # of the rendered text and of each intermediate one
MAX_STEPS = 2_000_000  # in one rendering
MAX_PRODUCT = 1 << 27  # of the sizes of one call's arguments, which bounds the size of any method's result
MAX_INT_BITS = 256
CHARS_PER_STEP = 64
STEPS_PER_CALL = 8
INLINE_STEPS = 10_000  # few enough for the event loop: 1 to 7 ms


class TemplateBudgetExceeded(Exception):
    """Template that needs more work or text than one rendering may take."""


class RenderBudget:
    """Counter of the steps of one rendering."""

    def __init__(self, max_steps: int = MAX_STEPS) -> None:
        self._max_steps = max_steps
        self._steps_left = max_steps

    def charge(self, num_steps: int = 1) -> None:
        """Count steps. Raises TemplateBudgetExceeded beyond the limit."""
        self._steps_left -= num_steps
        if self._steps_left < 0:
            raise TemplateBudgetExceeded(f"it takes more than {self._max_steps} steps")

    def charge_value(self, value: object) -> None:
        """Count everything inside a value, as often as it is in there: what comparing or writing it may cost.

        Lists that contain each other's copies can have 2^30 elements in 30 lists; the walk ends with the budget.
        """
        stack = [value]
        while stack:
            item = stack.pop()
            self.charge(1 + shallow_steps(item))
            if isinstance(item, dict):
                stack += item.keys()
                stack += item.values()
            elif isinstance(item, list | tuple):
                stack += item

    def check_product(self, *arguments: object) -> None:
        """Bound a call by the product of its arguments' sizes: no padding, replacing or formatting makes a longer
        text."""
        product = 1
        for argument in arguments:
            product *= _size(argument)
        if product > min(MAX_PRODUCT, self._max_steps * CHARS_PER_STEP):
            raise TemplateBudgetExceeded("one of its calls could make too long a text")


def shallow_steps(value: object) -> int:
    """Return the steps of reading a value without what is inside its elements."""
    if isinstance(value, str):
        return len(value) // CHARS_PER_STEP
    return len(value) if isinstance(value, list | tuple | dict | range) else 0


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


def result_steps(operator: str, left: object, right: object) -> int:
    """Return the steps of building `left + right` or `left * right` where that is a text or a list."""
    if operator == "+":
        return shallow_steps(left) + shallow_steps(right)
    if isinstance(left, int | float) and isinstance(right, int | float):
        return 0
    texts = (left, right)
    per_step = CHARS_PER_STEP if any(isinstance(value, str) for value in texts) else 1
    return _size(left) * _size(right) // per_step


def _size(value: object) -> int:
    """Return the factor, at least 1, by which an argument may lengthen a result."""
    if isinstance(value, bool):
        return 1
    if isinstance(value, int):
        return max(1, abs(value))
    return max(1, len(value)) if isinstance(value, str | list | tuple) else 1
