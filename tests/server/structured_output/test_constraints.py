"""server/structured_output/constraints.py: the requested format reaches the engine, an unusable one is a 400."""

import json
from collections.abc import Callable
from typing import Any

import jsonschema
import pytest

from engine.errors import GrammarError
from engine.grammars.matcher import GrammarCompiler
from engine.token_constraints import token_constraints
from engine.types import Request
from tests.support.servers.fake_engine import EOS, FakeEngine
from tests.support.servers.serving import MODEL, client_of, saying, state_around, tokenizer

pytestmark = pytest.mark.anyio

FIRST_BYTE_ID = 3  # of <0x00> in Mixtral's vocabulary
COMPLETIONS: dict[str, Any] = {"model": MODEL, "prompt": "Say it:"}
CHAT: dict[str, Any] = {"model": MODEL, "messages": [{"role": "user", "content": "Say it"}]}
PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer", "minimum": 0}},
    "required": ["name", "age"],
    "additionalProperties": False,
}


async def submitted(path: str, body: dict[str, Any]) -> Request:
    engine = FakeEngine(saying("fine"))
    async with client_of(state_around(engine)) as client:
        response = await client.post(path, json=body)
    assert response.status_code == 200, response.text
    return engine.submitted[0]


async def refusal(path: str, body: dict[str, Any]) -> tuple[str, str, str]:
    """Return param, code and message of a 400, sent before anything reached the engine."""
    engine = FakeEngine(saying("fine"))
    async with client_of(state_around(engine)) as client:
        answers = [await client.post(path, json={**body, "stream": stream}) for stream in (False, True)]
    assert [answer.status_code for answer in answers] == [400, 400], answers[0].text
    assert answers[0].json() == answers[1].json() and not engine.submitted
    error = answers[0].json()["error"]
    return error["param"], error["code"], error["message"]


def matches(grammar: str | None, text: str) -> bool:
    """Return whether the engine's matcher accepts the whole text and then its end."""
    assert grammar is not None
    compiler = GrammarCompiler(tokenizer().vocabulary(), 32000, (EOS,))
    ids = [FIRST_BYTE_ID + byte for byte in text.encode()]
    try:
        mask = compiler.matcher(grammar).bitmask(ids, 0)
    except GrammarError:
        return False
    return bool(mask[EOS // 8] >> EOS % 8 & 1)


FORMATS: list[tuple[dict[str, Any], list[str], list[str]]] = [
    ({"structured_outputs": {"regex": "a/b[0-9]{2}"}}, ["a/b12"], ["", "a/b1", "a/b123", " a/b12"]),
    (
        {"structured_outputs": {"choice": ["yes", "no\n\"'\\", "\u00e9\u2028"]}},
        ["yes", "no\n\"'\\", "\u00e9\u2028"],
        ["y", "maybe"],
    ),
    (
        {"structured_outputs": {"json": PERSON}},
        ['{"name":"A","age":3}'],
        ['{"name":"A"}', '{"name":"A","age":-3}', "{}"],
    ),
    ({"structured_outputs": {"json": json.dumps(PERSON)}}, ['{"name":"A","age":3}'], ["{}"]),
    ({"structured_outputs": {"grammar": 'start: "(" start ")" | "x"'}}, ["x", "((x))"], ["((x)", ""]),
    ({"response_format": {"type": "json_object"}}, ["{}", '{"a":[1,null]}'], ["[]", '{"a": 1}', "3"]),
    (
        {"response_format": {"type": "json_schema", "json_schema": {"name": "p", "schema": PERSON, "strict": True}}},
        ['{"name":"A","age":3}'],
        ['{"name": "A", "age": 3}', "{}"],
    ),
]


@pytest.mark.parametrize(("fields", "good", "bad"), FORMATS)
@pytest.mark.parametrize(("path", "body"), [("/v1/completions", COMPLETIONS), ("/v1/chat/completions", CHAT)])
async def test_the_engine_gets_the_grammar_of_the_requested_format(
    path: str, body: dict[str, Any], fields: dict[str, Any], good: list[str], bad: list[str]
) -> None:
    request = await submitted(path, {**body, **fields})
    assert all(matches(request.grammar, text) for text in good)
    assert not any(matches(request.grammar, text) for text in bad)


@pytest.mark.parametrize("fields", [{}, {"response_format": {"type": "text"}}, {"structured_outputs": None}])
async def test_without_a_format_any_text_is_allowed(fields: dict[str, Any]) -> None:
    assert (await submitted("/v1/chat/completions", {**CHAT, **fields})).grammar is None


async def test_every_choice_has_the_grammar_and_a_leading_space_belongs_to_it() -> None:
    engine = FakeEngine(lambda request: [*tokenizer().encode("yes", add_special_tokens=False), EOS])
    async with client_of(state_around(engine)) as client:
        answer = await client.post(
            "/v1/chat/completions", json={**CHAT, "n": 2, "structured_outputs": {"choice": [" yes"]}}
        )
    assert [choice["message"]["content"] for choice in answer.json()["choices"]] == [" yes", " yes"]
    assert len({request.grammar for request in engine.submitted}) == 1


def schema(**fields: Any) -> dict[str, Any]:
    return {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": fields}}}


def structured(**fields: Any) -> dict[str, Any]:
    return {"structured_outputs": fields}


OF_SCHEMA = "response_format.json_schema.schema"
TWO_PRIMES: dict[str, Any] = {"allOf": [{"type": "integer", "multipleOf": value} for value in (9973, 9967)]}
ONE_LARGE: dict[str, Any] = {"type": "integer", "multipleOf": 10_000_019}
FORTY: dict[str, Any] = {
    "type": "object",
    "properties": {f"p{i}": {"type": "integer", "multipleOf": 9950 + i} for i in range(40)},
}
LARGE_MULTIPLES: list[tuple[dict[str, Any], str]] = [  # a schema, a part of the message
    (TWO_PRIMES, "least common multiple"),
    (ONE_LARGE, "at most 10000"),
    (FORTY, "add up to"),
    ({"type": "object", "properties": {"a": {"type": "array", "items": TWO_PRIMES}}}, "least common multiple"),
    ({"$ref": "#/$defs/a", "multipleOf": 9967, "$defs": {"a": {"multipleOf": 9973}}}, "least common multiple"),
]
INVALID: list[tuple[dict[str, Any], str, str, str]] = [  # fields, param, code, a part of the message
    (schema(type="obj"), OF_SCHEMA, "invalid_value", "not valid"),
    (schema(**{"$ref": "#"}), OF_SCHEMA, "invalid_value", "itself without end, at $ref."),
    (schema(properties={"a": {"$ref": "#/properties/a"}}), OF_SCHEMA, "invalid_value", "at properties[0].$ref."),
    (schema(type="array", items={"$ref": "#/items"}), OF_SCHEMA, "invalid_value", "without end, at items.$ref."),
    (
        schema(**{"$defs": {"A": {"allOf": [{"$ref": "#/$defs/B"}]}, "B": {"$ref": "#/$defs/A"}}, "anyOf": []}),
        OF_SCHEMA,
        "invalid_value",
        "without end, at $defs[0].allOf[0].$ref.",
    ),
    (schema(oneOf=[]), OF_SCHEMA, "invalid_value", ""),
    (schema(anyOf=[]), OF_SCHEMA, "invalid_value", ""),
    (schema(**{"$ref": "http://10.0.0.1/x"}), OF_SCHEMA, "invalid_value", "outside itself"),
    (
        schema(type="object", properties={f"p{i}": {} for i in range(2000)}),
        OF_SCHEMA,
        "invalid_value",
        "it has 2,000 members in one object, and this server takes 1,000",
    ),
    (
        schema(type="object", properties={f"p{i}": {} for i in range(900)}, required=[f"p{i}" for i in range(199)]),
        OF_SCHEMA,
        "invalid_value",
        "it has 701 optional properties in one object and its alternatives, and this server takes 700",
    ),
    (
        schema(enum=[f"value {i}" for i in range(10_000)]),
        OF_SCHEMA,
        "invalid_value",
        "characters as JSON in ASCII, and this server takes 65,536",
    ),
    (
        schema(anyOf=[{"type": "object", "properties": {"a": {"const": i}}} for i in range(1000)]),
        OF_SCHEMA,
        "invalid_value",
        "it has 4,001 members in all its objects, and this server takes 2,500",
    ),
    (schema(enum=[]), OF_SCHEMA, "invalid_value", "no text"),
    (schema(type="string", pattern="[a"), OF_SCHEMA, "invalid_value", "regular expression"),
    (schema(type="string", pattern="(?<=a)b"), OF_SCHEMA, "invalid_value", "looking ahead"),
    (schema(type="string", format="colour"), OF_SCHEMA, "invalid_value", "format"),
    (schema(type="array", uniqueItems=True), OF_SCHEMA, "invalid_value", "uniqueItems"),
    (schema(type="integer", multipleOf=10**9), OF_SCHEMA, "invalid_value", "multipleOf"),
    (
        schema(allOf=[{"anyOf": [{"required": [f"{i}{j}"]} for j in range(4)]} for i in range(12)]),
        OF_SCHEMA,
        "invalid_value",
        "",
    ),
    (structured(regex="["), "structured_outputs.regex", "invalid_value", "regular expression"),
    (structured(regex="(?<=a)"), "structured_outputs.regex", "invalid_value", "looking ahead"),
    (structured(regex="a" * 100_000), "structured_outputs.regex", "string_above_max_length", ""),
    (structured(regex=""), "structured_outputs.regex", "empty_string", ""),
    (structured(grammar="root ::= x"), "structured_outputs.grammar", "invalid_value", "GBNF"),
    (structured(grammar="start: b"), "structured_outputs.grammar", "invalid_value", "not valid"),
    (structured(choice=[]), "structured_outputs.choice", "empty_array", ""),
    (structured(choice=[""]), "structured_outputs.choice[0]", "empty_string", ""),
    (structured(choice=["x" * 60_000, "y" * 60_000]), "structured_outputs.choice", "invalid_value", "too large"),
    (structured(choice=["a"] * 1001), "structured_outputs.choice", "array_above_max_length", ""),
    (structured(choice="yes"), "structured_outputs.choice", "invalid_type", ""),
    (structured(json="[]"), "structured_outputs.json", "invalid_type", ""),
    (structured(json="{"), "structured_outputs.json", "invalid_type", ""),
    (structured(json=True), "structured_outputs.json", "invalid_type", ""),
    (structured(), "structured_outputs", "invalid_value", "exactly one"),
    (structured(regex="a", choice=["a"]), "structured_outputs", "invalid_value", "exactly one"),
    (structured(regex="a", whitespace="x"), "structured_outputs.whitespace", "unknown_parameter", ""),
    ({"structured_outputs": "json"}, "structured_outputs", "invalid_type", ""),
    ({"response_format": {"type": "json_schema"}}, "response_format.json_schema", "missing_required_parameter", ""),
    (
        {"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}},
        OF_SCHEMA,
        "missing_required_parameter",
        "",
    ),
    ({"response_format": {"type": "text", "schema": {}}}, "response_format.schema", "invalid_value", ""),
    ({"response_format": {"type": "xml"}}, "response_format.type", "invalid_value", ""),
    (
        {"response_format": {"type": "json_object"}, **structured(regex="a")},
        "structured_outputs",
        "invalid_value",
        "exclude",
    ),
    ({**structured(regex="a"), "ignore_eos": True}, "ignore_eos", "invalid_value", ""),
    ({**structured(regex="a"), "min_tokens": 2}, "min_tokens", "invalid_value", ""),
    ({**structured(regex="a"), "allowed_token_ids": [7, 8]}, "allowed_token_ids", "invalid_value", "end token"),
]


@pytest.mark.parametrize(("value", "part"), LARGE_MULTIPLES, ids=lambda value: str(value)[:50])
@pytest.mark.parametrize(
    ("send", "param"),
    [
        (lambda value: schema(**value), OF_SCHEMA),
        (lambda value: structured(json=value), "structured_outputs.json"),
        (lambda value: structured(json=json.dumps(value)), "structured_outputs.json"),
        (lambda value: structured(grammar=f"start: %json {json.dumps(value)}"), "structured_outputs.grammar"),
        (
            lambda value: structured(
                grammar=f"start: %lark {{\nstart: %lark {{\nstart: %json{json.dumps(value)}\n}}\n}}"
            ),
            "structured_outputs.grammar",
        ),
    ],
    ids=["response_format", "json", "json as text", "grammar", "nested grammar"],
)
async def test_a_schema_with_large_automata_is_refused_before_it_is_compiled(
    value: dict[str, Any], part: str, send: Callable[[dict[str, Any]], dict[str, Any]], param: str
) -> None:
    found_param, code, message = await refusal("/v1/chat/completions", {**CHAT, **send(value)})
    assert (found_param, code) == (param, "invalid_value")
    assert part in message and f"'{param}'" in message


async def test_the_schemas_of_one_grammar_share_the_bound_on_automata() -> None:
    rules = [f'a{i}: %json {{"type": "integer", "multipleOf": {9950 + i}}}' for i in range(40)]
    grammar = "\n".join([f"start: {' '.join(rule.split(':')[0] for rule in rules)}", *rules])
    param, _, message = await refusal("/v1/completions", {**COMPLETIONS, **structured(grammar=grammar)})
    assert param == "structured_outputs.grammar" and "add up to" in message


@pytest.mark.parametrize("behind", ["", " {", " {'a': 1}", ' {"multipleOf": 1e999}', ' {"a": 01}', " NaN", ' {"a": 3'])
async def test_json_in_a_grammar_that_cannot_be_parsed_is_refused(behind: str) -> None:
    param, _, _ = await refusal("/v1/completions", {**COMPLETIONS, **structured(grammar=f"start: %json{behind}")})
    assert param == "structured_outputs.grammar"


@pytest.mark.parametrize(
    ("fields", "good", "bad"),
    [
        (schema(type="integer", multipleOf=9973), "19946", "19947"),
        (structured(grammar='start: "%json" %json {"multipleOf": 25, "type": "integer"}'), "%json75", "%json76"),
        (structured(grammar='start: %lark {\nstart: %json {"multipleOf": 25, "type": "integer"}\n}'), "75", "76"),
    ],
)
async def test_small_multiples_are_followed(fields: dict[str, Any], good: str, bad: str) -> None:
    grammar = (await submitted("/v1/completions", {**COMPLETIONS, **fields})).grammar
    assert matches(grammar, good) and not matches(grammar, bad)


@pytest.mark.parametrize(("fields", "param", "code", "part"), INVALID, ids=lambda value: str(value)[:50])
async def test_a_format_that_cannot_be_followed_is_a_400_that_names_the_parameter(
    fields: dict[str, Any], param: str, code: str, part: str
) -> None:
    for path, body in (("/v1/completions", COMPLETIONS), ("/v1/chat/completions", CHAT)):
        error = await refusal(path, {**body, **fields})
        assert error[:2] == (param, code)
        assert part in error[2]


async def test_an_error_never_repeats_the_clients_text() -> None:
    for fields in (schema(type="SECRET"), structured(regex="[SECRET"), structured(grammar="start: SECRET")):
        assert "SECRET" not in (await refusal("/v1/completions", {**COMPLETIONS, **fields}))[2]


async def test_an_allowed_end_token_and_a_format_can_be_combined() -> None:
    request = await submitted(
        "/v1/completions", {**COMPLETIONS, **structured(regex="a"), "allowed_token_ids": [EOS, 9]}
    )
    assert request.grammar is not None
    assert request.params.constraints == token_constraints(allowed_token_ids=[EOS, 9])


async def test_the_verdict_on_a_grammar_does_not_depend_on_earlier_requests() -> None:
    engine = FakeEngine(saying("fine"))
    async with client_of(state_around(engine)) as client:
        for regex, status in (("a", 200), ("[", 400), ("a", 200), ("[", 400), ("b", 200)):
            answer = await client.post("/v1/completions", json={**COMPLETIONS, **structured(regex=regex)})
            assert answer.status_code == status
    grammars = [request.grammar for request in engine.submitted]
    assert matches(grammars[0], "a") and matches(grammars[2], "b") and grammars[0] == grammars[1]


def test_the_schema_of_these_tests_is_valid() -> None:
    jsonschema.Draft202012Validator.check_schema(PERSON)
