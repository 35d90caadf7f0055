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
    "extra_forbidden": "there is no such setting",
}
BOUNDS = {
    "greater_than": ("gt", "more than"),
    "greater_than_equal": ("ge", "at least"),
    "less_than": ("lt", "less than"),
    "less_than_equal": ("le", "at most"),
}
OF_OTHER_SERVERS = {  # values that vLLM and llama.cpp know, by setting, and what they stand for here
    "quantization": {
        name: f"a checkpoint in {name} is served as it is, without this flag"
        for name in ("awq", "gptq", "gguf", "compressed-tensors")
    },
    "dtype": dict.fromkeys(
        ("half", "float16", "fp16", "f16"), "a checkpoint in float16 is computed in bfloat16, without this flag"
    ),
    "kv_cache_dtype": dict.fromkeys(("fp8", "fp8_e4m3", "fp8_e5m2", "q8_0"), "int8 has about as many bytes"),
}


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
        hint = OF_OTHER_SERVERS.get(error["loc"][0], {}).get(str(error.get("input")))
        return f"should be {context['expected'].replace(chr(39), '')}" + (f"; {hint}" if hint else "")
    return SENTENCES.get(kind) or error["msg"].removeprefix("Value error, ")
