"""Prompts as a request may write them: a text, token ids, or a list of either."""

from typing import Annotated

from pydantic import Field, PlainValidator
from pydantic_core import PydanticCustomError

Text = Annotated[str, Field(min_length=1)]
Ids = Annotated[list[int], Field(min_length=1)]


def prompts_up_to(max_prompts: int) -> PlainValidator:
    """Return the validator of a field with at most `max_prompts` prompts."""
    several = Field(min_length=1, max_length=max_prompts)
    schema = Text | Annotated[list[Text], several] | Ids | Annotated[list[Ids], several]
    return PlainValidator(lambda value: _prompts(value, max_prompts), json_schema_input_type=schema)


def _prompts(value: object, max_prompts: int) -> list[str] | list[list[int]]:
    """Turn a string, a list of strings, a list of ids, or a list of lists of ids into a list of prompts of one kind."""
    if isinstance(value, str):
        value = [value]
    if not isinstance(value, list):
        raise _prompt_type()
    if not value:
        raise PydanticCustomError("too_short", "")
    if _is_ids(value):
        return [value]
    if len(value) > max_prompts:
        raise PydanticCustomError("too_long", "", {"max_length": max_prompts})
    if all(isinstance(item, str) for item in value):
        if not all(value):
            raise PydanticCustomError("string_too_short", "")
        return value
    if not all(isinstance(item, list) and _is_ids(item) for item in value):
        raise _prompt_type()
    if not all(value):
        raise PydanticCustomError("too_short", "")
    return value


def _is_ids(items: list[object]) -> bool:
    return set(map(type, items)) <= {int}


def _prompt_type() -> PydanticCustomError:
    return PydanticCustomError("prompt_type", "")
