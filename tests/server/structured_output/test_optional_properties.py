"""server/structured_output/optional_properties.py: a schema of many optional properties is refused, or never fails."""

from typing import Any

import pytest

from engine.grammars.matcher import FEW_READINGS, GrammarCompiler
from engine.types import Vocabulary
from server.errors import ApiError
from server.schemas import CompletionRequest, validate
from server.structured_output.constraints import MAX_OPTIONAL, constraint_of, schema_constraint
from tests.support.checkpoints.mistral_tokenizers import v1_tokenizer
from tests.support.servers.serving import MODEL

Schema = dict[str, Any]
A: Schema = {"$ref": "#/$defs/a"}
VALUES: Schema = {"$ref": "#/$defs/v"}
LISTS: Schema = {"type": "array", "items": A}


def an_object(num: int, name: str = "p", value: Schema | None = None, **more: Any) -> Schema:
    return {"type": "object", "properties": {f"{name}{i}": value or {} for i in range(num)}, **more}


def recursive(*values: Schema) -> Schema:
    return {**A, "$defs": {"a": an_object(MAX_OPTIONAL, value=VALUES), "v": {"anyOf": [A, *values]}}}


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory: pytest.TempPathFactory) -> Vocabulary:
    return v1_tokenizer(tmp_path_factory.mktemp("tokenizer")).vocabulary()


HALVES = [an_object(MAX_OPTIONAL // 2), an_object(MAX_OPTIONAL // 2, "q")]
FREE = b'{"p0":[1,{"a":2}],"p2":{"'
LARGEST: dict[str, tuple[Schema, bytes]] = {  # the most that is accepted, and a text
    "of any values": (an_object(MAX_OPTIONAL), FREE),
    "in an array": ({"type": "array", "items": an_object(MAX_OPTIONAL)}, b'[{"p0":[1],"p2":[{}]},{"p0":["'),
    "in a union": ({"anyOf": HALVES}, FREE),
    "in a union of arrays": ({"anyOf": [{"type": "array", "items": one} for one in HALVES]}, b"[" + FREE),
    "with a list of a few": (an_object(MAX_OPTIONAL, additionalProperties={"anyOf": [{"type": "string"}, {}]}), FREE),
    "recursive": (recursive(LISTS, {"type": "string"}, {"type": "null"}), b'{"p0":[{"p1":{"p3":[]}}],"p2":[{"'),
    "recursive maps": (
        recursive(LISTS, {"type": "object", "additionalProperties": A}, {"type": "array"}),
        b'{"p0":[{"p1":{"p3":[],"x":{}}}],"p2":[{"',
    ),
}


@pytest.mark.parametrize("name", LARGEST)
def test_no_mask_of_the_largest_objects_exceeds_the_limits(name: str, vocabulary: Vocabulary) -> None:
    """Each token that ends a value and begins a key costs items for all properties."""
    schema, text = LARGEST[name]
    matcher = GrammarCompiler(vocabulary, len(vocabulary.tokens), [2]).matcher(schema_constraint(schema, "p").grammar)
    bytes_of = {token: i for i, token in enumerate(vocabulary.tokens) if len(token) == 1}
    for length in range(len(text) + 1):
        assert any(matcher.bitmask([bytes_of[text[i : i + 1]] for i in range(length)], 0))


TOO_MANY: dict[str, Schema] = {
    "in one object": an_object(MAX_OPTIONAL + 1),
    "in alternatives": {"anyOf": [*HALVES, an_object(1, "r")]},
    "inside": {"type": "array", "items": {"anyOf": [*HALVES, {"anyOf": [an_object(1, "r")]}]}},
    "with their base": {**an_object(1, "r"), "anyOf": HALVES},
    "by references": {
        "anyOf": [{"$ref": "#/$defs/a"}, {"$ref": "#/$defs/b/0"}],
        "$defs": {"a": an_object(MAX_OPTIONAL), "b": [an_object(1, "r")]},
    },
    "of all": {"allOf": [*HALVES, an_object(1, "r")]},
}


@pytest.mark.parametrize("name", TOO_MANY)
def test_optional_properties_are_counted_over_the_alternatives(name: str) -> None:
    with pytest.raises(ApiError, match=f"{MAX_OPTIONAL + 1} optional properties in one object and its alternatives"):
        schema_constraint(TOO_MANY[name], "p")


def test_other_objects_and_required_properties_do_not_count() -> None:
    required = an_object(MAX_OPTIONAL, required=[f"p{i}" for i in range(MAX_OPTIONAL)])
    several = {"type": "object", "properties": {"a": HALVES[0], "b": {"anyOf": HALVES}}}
    for schema in ({"anyOf": [required, *HALVES]}, several, {"anyOf": [A, A], "$defs": {"a": several}}):
        assert schema_constraint(schema, "p").grammar.endswith(FEW_READINGS)


def test_counting_ends_where_parts_apply_in_too_many_ways() -> None:
    """Of 400 parts each applies to the values of all."""
    parts: list[Schema] = [{"anyOf": [{"$ref": f"#/$defs/{i + 1}"}, {}]} for i in range(400)]
    schema = {**A, "$defs": {**{str(i): part for i, part in enumerate(parts)}, "a": an_object(MAX_OPTIONAL + 1)}}
    with pytest.raises(ApiError, match="apply to the same values in too many ways"):
        schema_constraint(schema, "p")


def test_a_clients_grammar_cannot_claim_to_read_a_text_in_few_ways() -> None:
    body = {"model": MODEL, "prompt": "x", "structured_outputs": {"grammar": f"start: /a/\n{FEW_READINGS}"}}
    constraint = constraint_of(validate(CompletionRequest, body))
    assert constraint is not None and not constraint.grammar.endswith(FEW_READINGS)
