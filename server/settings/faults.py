"""Faults of settings in words: pydantic's errors name Python types, these name what the user may write."""

from collections.abc import Sequence
from typing import Any

SENTENCES = {
    "int_parsing": "should be a whole number",
    "int_type": "should be a whole number",
    "int_from_float": "should be a whole number",
    "int_parsing_size": "should be a smaller number",
    "float_parsing": "should be a number",
    "float_type": "should be a number",
    "finite_number": "should be a finite number",
    "bool_parsing": "should be true or false",
    "bool_type": "should be true or false",
    "string_type": "should be text",
    "tuple_type": "should be a list",
    "path_type": "should be the path of a file",
    "path_not_file": "there is no such file",
    "extra_forbidden": "there is no such setting",
}
BOUNDS = {
    "greater_than": ("gt", "more than"),
    "greater_than_equal": ("ge", "at least"),
    "less_than": ("lt", "less than"),
    "less_than_equal": ("le", "at most"),
}
STORED_FORMATS = ("awq", "gptq", "gguf", "compressed-tensors")  # values of vLLM's --quantization


def describe(errors: Sequence[Any]) -> str:
    """Return the faults of one setting as one sentence.

    `errors`: pydantic's ErrorDetails; several if the setting accepts several types, of which none fits.
    """
    sentences = list(dict.fromkeys(map(_sentence, errors)))
    others = (sentence.removeprefix("should be ") for sentence in sentences[1:])
    return " or ".join([sentences[0], *others])


def _sentence(error: Any) -> str:
    kind, context = error["type"], error.get("ctx", {})
    if kind in BOUNDS:
        name, relation = BOUNDS[kind]
        bound = context[name]
        return f"should be {relation} {bound if isinstance(bound, int) else format(bound, 'g')}"
    if kind == "literal_error":
        stored = error.get("input") in STORED_FORMATS and error["loc"] == ("quantization",)
        hint = f"; a checkpoint in {error['input']} is served as it is, without this flag" if stored else ""
        return f"should be {context['expected'].replace(chr(39), '')}{hint}"
    return SENTENCES.get(kind) or error["msg"].removeprefix("Value error, ")
