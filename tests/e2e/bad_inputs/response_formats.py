"""Response formats that are invalid or not supported."""

from typing import Any

from tests.e2e.bad_inputs.rows import (
    COMPLETIONS,
    MISSING,
    NO_ITEM,
    NO_TEXT,
    OPENAI,
    TOO_LONG,
    TOO_MANY,
    TYPE,
    UNKNOWN,
    VALUE,
    Body,
    Row,
    each,
)

FORMAT, SCHEMA = "response_format", "response_format.json_schema.schema"
REGEX, GRAMMAR = "structured_outputs.regex", "structured_outputs.grammar"
DEEP: Any = {"type": "string"}
for _ in range(70):
    DEEP = {"items": DEEP}

BAD_SCHEMAS: list[Any] = [
    {"type": "Zebra"},
    {"type": 5},
    {"type": ["string", "Zebra"]},
    {"$ref": "#"},
    {"$ref": "#/definitions/a", "definitions": {"a": {"$ref": "#/definitions/a"}}},
    {"$ref": "http://169.254.169.254/Zebra"},
    {"$ref": "file:///etc/passwd"},
    {"$ref": "#/Zebra"},
    {"$ref": 5},
    {"type": "string", "pattern": "["},
    {"type": "string", "pattern": "(?<=a)Zebra"},
    {"type": "string", "pattern": "a\\"},
    {"type": "string", "pattern": "\\ud800"},
    {"type": "string", "pattern": 5},
    {"type": "string", "pattern": "\\w*" * 4000},
    {"type": "object", "patternProperties": {"(": {}}},
    {"type": "object", "patternProperties": {"\\w*" * 4000: {}}},
    {"type": "string", "minLength": -1},
    {"type": "string", "minLength": 5, "maxLength": 2},
    {"type": "string", "format": "Zebra"},
    {"type": "integer", "minimum": 1, "maximum": 0},
    {"type": "integer", "multipleOf": -1},
    {"type": "number", "multipleOf": 10**9},
    {"type": "object", "properties": {f"p{number}": {"type": "string"} for number in range(10_000)}},
    {"type": "object", "properties": 5},
    {"type": "object", "required": "Zebra"},
    {"type": "object", "required": ["Zebra"], "additionalProperties": False},
    {"enum": list(range(100_000))},
    {"not": {}},
    {"not": {"pattern": "Zebra"}},
    {"if": {"pattern": "Zebra"}, "then": {"minLength": 9}},
    {"uniqueItems": True},
    {"contains": {"const": "Zebra"}},
    {"dependentRequired": {"Zebra": "Zebra"}},
    {"propertyNames": {"format": "date"}},
    {"properties": {"Zebra": {}, "a": {}}, "minProperties": 2},
    {"$dynamicRef": "#Zebra"},
]
BAD_REGEXES = [
    *("[", "(", "*", "(?<=Zebra)", "(?=a)", "\\1(a)", "[z-a]", "\\p{Zebra}", "\\x{110000}", "(?P<n>a)(?P<n>b)"),
    *("\\", "Zebra\\", "a\\\\\\", "(?x)a # Zebra\nb", "(" * 5000 + ")" * 5000, "[^\\x00-\\x{10FFFF}]"),
    *("\\w*" * 4000, "a?" * 30_000, "(a|b|c)*" * 3000, "(\\w|)" * 4000),
]
DOUBLING = "\n".join(f"A{number}: A{number - 1} A{number - 1}" for number in range(1, 13))
BAD_GRAMMARS = [
    "start: A12\nA0: /\\w*/\n" + DOUBLING,
    "start: A0\n" + "\n".join(f"A{number}: A{number + 1}" for number in range(3000)) + "\nA3000: /a/",
    *("Zebra", "start: Zebra", "start: start", "start: a\na: b\nb: a", "start: /(/", "start: %json {"),
    *('start: %json {"type":"Zebra"}', "start: <[999999]>", "start: <|Zebra|>", "start: @Zebra", "%import Zebra", "\0"),
    *('start: "\\ud800"', "START: /a/", "start: " + "(" * 3000, "start: " + '"a"? ' * 5000, '{"grammars":[]}'),
]


def with_schema(schema: Any) -> Body:
    return {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}}


def with_outputs(**outputs: Any) -> Body:
    return {"structured_outputs": outputs}


FORMAT_ROWS: dict[str, Row] = {
    "a large form, times the choices": Row(
        (COMPLETIONS,),
        [
            ({"prompt": ["a"] * 128, "n": 8, **form}, VALUE, next(iter(form)))
            for form in (
                with_outputs(choice=[f"{number:060}" for number in range(1000)]),
                with_schema({"enum": ["a" * 60_000]}),
            )
        ],
    ),
    "response_format": Row(
        OPENAI,
        [
            *each(FORMAT, [5, "Zebra", []], TYPE),
            ({FORMAT: {}}, MISSING, f"{FORMAT}.type"),
            *[({FORMAT: {"type": kind}}, VALUE, f"{FORMAT}.type") for kind in (5, "Zebra", "", "JSON_OBJECT")],
            *[
                ({FORMAT: {"type": "json_schema", **more}}, MISSING, f"{FORMAT}.json_schema")
                for more in ({}, {"json_schema": None})
            ],
            ({FORMAT: {"type": "json_schema", "json_schema": {"name": "x"}}}, MISSING, SCHEMA),
            (
                {FORMAT: {"type": "json_schema", "json_schema": {"name": "a b", "schema": {}}}},
                VALUE,
                f"{FORMAT}.json_schema.name",
            ),
            (
                {FORMAT: {"type": "json_schema", "json_schema": {"schema": {}, "z": 1}}},
                UNKNOWN,
                f"{FORMAT}.json_schema.z",
            ),
            ({FORMAT: {"type": "json_object", "x": 1}}, UNKNOWN, f"{FORMAT}.x"),
            ({FORMAT: {"type": "text", "json_schema": {"schema": {}}}}, VALUE, f"{FORMAT}.json_schema"),
            *[(with_schema(value), TYPE, SCHEMA) for value in (5, "Zebra", [], True)],
            *[(with_schema(value), VALUE, SCHEMA) for value in BAD_SCHEMAS],
            (with_schema(DEEP), "invalid_json", None),
        ],
    ),
    "structured_outputs": Row(
        OPENAI,
        [
            *each("structured_outputs", [5, "Zebra", []], TYPE),
            *each("structured_outputs", [{}, {"json": None}, {"json": {}, "regex": "a"}], VALUE),
            (with_outputs(Zebra=1), UNKNOWN, "structured_outputs.Zebra"),
            *[
                (with_outputs(json=value), TYPE, "structured_outputs.json")
                for value in (5, "Zebra", "{", "[]", '{"a":1,"a":2}', '{"a":NaN}', '{"a":' * 99, [])
            ],
            *[(with_outputs(json=value), VALUE, "structured_outputs.json") for value in BAD_SCHEMAS[:9]],
            *[(with_outputs(regex=value), VALUE, REGEX) for value in BAD_REGEXES],
            (with_outputs(regex=""), NO_TEXT, REGEX),
            (with_outputs(regex="a" * 1_000_000), TOO_LONG, REGEX),
            (with_outputs(regex=5), TYPE, REGEX),
            *[(with_outputs(grammar=value), VALUE, GRAMMAR) for value in BAD_GRAMMARS],
            (with_outputs(grammar=""), NO_TEXT, GRAMMAR),
            (with_outputs(choice=[]), NO_ITEM, "structured_outputs.choice"),
            (with_outputs(choice=[""]), NO_TEXT, "structured_outputs.choice[0]"),
            (with_outputs(choice=["a"] * 1001), TOO_MANY, "structured_outputs.choice"),
            *[
                ({**with_outputs(regex="a+"), name: value}, VALUE, name)
                for name, value in (("ignore_eos", True), ("min_tokens", 1))
            ],
            ({**with_outputs(regex="a+"), "allowed_token_ids": [5]}, VALUE, "allowed_token_ids"),
            ({**with_outputs(regex="a+"), "response_format": {"type": "json_object"}}, VALUE, "structured_outputs"),
        ],
    ),
}
