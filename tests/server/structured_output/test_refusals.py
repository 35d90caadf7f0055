"""server/structured_output/refusals.py: the reason and the place of a fault in a schema, an expression, a grammar."""

from typing import Any

import pytest

from server.errors import ApiError
from server.schemas import CompletionRequest, validate
from server.structured_output.constraints import constraint_of
from server.structured_output.grammar_checker import GrammarChecker
from tests.support.servers.inline_sandbox import InlineSandbox
from tests.support.servers.serving import MODEL, tokenizer

pytestmark = pytest.mark.anyio
SECRET = {"type": "string", "description": "SECRET"}


def properties(*schemas: Any) -> dict[str, Any]:
    """Return the schema of an object; the names of its members are the client's."""
    return {"type": "object", "properties": {f"SECRET{i}": schema for i, schema in enumerate(schemas)}}


IN_SCHEMAS: list[tuple[dict[str, Any], str]] = [  # a schema, what is said of its fault
    ({"type": "obj"}, "it is not valid: type is not a type of JSON, nor a list of such types"),
    (properties(SECRET, {"type": ["string", "text"]}), "it is not valid: properties[1].type is not a type of JSON,"),
    (
        properties({"type": "array", "items": {"minLength": -1}}),
        "properties[0].items.minLength must be an integer that",
    ),
    (properties({"anyOf": [SECRET, {"minimum": "5"}]}), "properties[0].anyOf[1].minimum must be a number"),
    (properties({"required": ["SECRET", 1]}), "properties[0].required must be an array of strings"),
    (properties(5), "properties[0] must be an object or a boolean"),
    ({"properties": []}, "properties must be an object"),
    ({"additionalProperties": {"enum": "SECRET"}}, "additionalProperties.enum must be an array"),
    ({"prefixItems": [SECRET, {"pattern": 5}]}, "prefixItems[1].pattern must be a string"),
    (
        properties(SECRET, {"type": "string", "format": "SECRET"}),
        "a format that is not supported, at properties[1].format",
    ),
    (
        properties({"type": "array", "uniqueItems": True}),
        "unsupported keywords (uniqueItems), at properties[0].uniqueItems",
    ),
    (  # the first is expressed by a grammar
        properties({"uniqueItems": True, "maxItems": 1}, {"items": {"uniqueItems": True, "description": "SECRET"}}),
        "unsupported keywords (uniqueItems), at properties[1].items.uniqueItems",
    ),
    (  # where no schema is looked for
        properties({"not": {"$ref": "#/examples/0"}})
        | {"examples": [{"not": properties({"allOf": 5, "not": SECRET})}]},
        "unsupported keywords (not), at properties[0].not",
    ),
    (properties({"not": {"pattern": "SECRET"}}), "unsupported keywords (not), at properties[0].not"),
    (
        properties(SECRET, {"$dynamicRef": "#SECRET"}),
        "unsupported keywords ($dynamicRef), at properties[1].$dynamicRef",
    ),
    (properties({**properties(SECRET, SECRET), "minProperties": 3}), "required, at properties[0].minProperties"),
    (properties({"dependentRequired": {"SECRET": "a"}}), "properties[0].dependentRequired must be an object of arrays"),
    (properties(SECRET, {"minimum": 2**62}), "its bounds are too far from 0, at properties[1].minimum"),
    (properties({"$ref": "#/$defs/SECRET"}), "it refers to a part that it does not have, at properties[0].$ref"),
    (properties(SECRET, {"$ref": "http://SECRET/"}), "it refers to something outside itself, at properties[1].$ref"),
    (
        properties({"type": "string", "pattern": "SECRET[a"}),
        "a character class has no ], at character 7 of properties[0].pattern",
    ),
    (
        properties({"type": "object", "patternProperties": {"^a$": {}, "(SECRET": {}}}),
        "a group has no ), at character 1 of properties[0].patternProperties[1]",
    ),
    # words of the client that are also words of llguidance's messages
    ({"type": "limit", "description": "too large"}, "type is not a type of JSON"),
    ({"type": "array", "uniqueItems": True, "description": "the limit is too large"}, "(uniqueItems), at uniqueItems"),
]
IN_EXPRESSIONS: list[tuple[str, str]] = [  # an expression, what is said of its fault
    ("[", "supports: a character class has no ], at character 1."),
    ("SECRET/[a", "a character class has no ], at character 8."),  # llguidance is sent \\/ for the slash
    ("\n\n/[a", "a character class has no ], at character 4."),
    ("é(", "a group has no ), at character 2."),
    ("a)b", "this ) closes no group, at character 2."),
    ("SECRET|*a", "there is nothing to repeat, at character 8."),
    ("a{5,2}", "the repetition's minimum is above its maximum, at character 2."),
    ("[z-a]", "the range ends before it begins, at character 2."),
    ("ab\\y", "unknown escape, at character 3."),
    ("\\p{SECRET}", "unknown Unicode property, at character 1."),
    ("(?P<SECRET>a)(?P<SECRET>b)", "another group has this name, at character 5."),
    ("ab(?<=a)", "looking ahead or behind is not supported, at character 3."),
    ("(a)\\1", "references to groups are not supported, at character 4."),
    ("a(?i", "supports, at character "),  # a fault without words of our own
    ("limit too large \\bSECRET", "word boundaries, and ^ or $ inside a regular expression, are not supported."),
]
IN_GRAMMARS = [
    ('start: "a" SECRET', "it is not valid, in line 1."),
    ('start: "a" b\nb: /[/', "expression that this server supports, in line 2."),
]


async def refused(**fields: Any) -> str:
    """Return the message of the refusal."""
    request = validate(CompletionRequest, {"model": MODEL, "prompt": "x", **fields})
    constraint = constraint_of(request)
    assert constraint is not None
    with pytest.raises(ApiError) as error:
        await GrammarChecker(tokenizer(), InlineSandbox()).compile(request, [constraint])
    assert (error.value.status, error.value.code) == (400, "invalid_value")
    assert "SECRET" not in error.value.message
    return error.value.message


@pytest.mark.parametrize(("schema", "part"), IN_SCHEMAS, ids=lambda value: str(value)[:60])
async def test_a_fault_of_a_schema_is_named_with_its_path(schema: dict[str, Any], part: str) -> None:
    assert part in await refused(structured_outputs={"json": schema})


@pytest.mark.parametrize(("regex", "part"), IN_EXPRESSIONS, ids=repr)
async def test_a_fault_of_an_expression_is_named_with_its_character(regex: str, part: str) -> None:
    assert part in await refused(structured_outputs={"regex": regex})


@pytest.mark.parametrize(("grammar", "part"), IN_GRAMMARS)
async def test_a_fault_of_a_grammar_is_named_with_its_line(grammar: str, part: str) -> None:
    assert part in await refused(structured_outputs={"grammar": grammar})


async def test_a_translated_grammar_has_no_position() -> None:
    message = await refused(structured_outputs={"grammar": 'root ::= "a" [z-a]'})
    assert "line" not in message
