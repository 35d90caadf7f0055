"""From what a request says of its answer's form to a grammar, in llguidance's notation (a dialect of Lark's)."""

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import llguidance

from server.errors import ApiError, invalid_value
from server.schemas.generation import GenerationRequest
from server.schemas.structured import MAX_GRAMMAR_CHARS, ResponseFormat, StructuredOutputs
from server.strict_json import JsonValue

# Each token is the model's own choice among those that fit. Forcing the usual tokens of a text that the grammar leaves
# no choice about would cost time in proportion to that text's length, at each of its tokens.
OPTIONS = '%llguidance {"no_forcing": true}\n'
# Compact: where spaces are allowed a small model may write nothing else. What cannot be followed is an error.
JSON_OPTIONS: dict[str, JsonValue] = {"whitespace_flexible": False, "lenient": False, "coerce_one_of": False}
LOOSE: dict[str, JsonValue] = {"lenient": True, "coerce_one_of": True}  # what cannot be followed is left out
ANY_OBJECT: dict[str, JsonValue] = {"type": "object"}
MAX_MEMBERS_OF_ONE = 1000  # of one object in a schema: the work grows with the square of it
MAX_MEMBERS = 2500
GRAMMAR_PARAM = "structured_outputs.grammar"
COMPACT: Mapping[str, JsonValue] = {"item_separator": ",", "key_separator": ":"}
MAX_MULTIPLE_OF = 10_000.0  # the states of a number's digits are as many
# Of one regular expression or grammar: the work grows with the square of those in a row, 0.3 s for a thousand of \w*.
MAX_OPTIONAL_PARTS = 1000
_OPTIONAL_PART = re.compile(r"[?*{]|\(\||\|\)|\|\||\(\)")
MAX_TERMINAL_DEPTH = 100
_NAME = re.compile(r"[A-Z_][A-Z_0-9]*")
_TERMINAL = re.compile(r"^[ \t]*+([A-Z_][A-Z_0-9]*+)[^:\n]*+:(.*(?:\n[ \t]*+\|.*)*+)", re.MULTILINE)
_VERBOSE = re.compile(r"\(\?[a-zA-Z]*x")


@dataclass(frozen=True)
class Constraint:
    """A form that an answer must have (Lark's notation; the rule `start` is all of it), and what asked for it."""

    lark: str
    param: str
    is_exact: bool = True  # a space in front belongs to the text, and is not the tokenizer's own
    shown_ids: tuple[int, ...] = ()  # special tokens that are part of the text

    def as_rule(self, name: str) -> str:
        """The same as a rule of another grammar. Raises ApiError 400 where it is a whole grammar of the client's."""
        if not self.lark.startswith("start: ") or self.param == GRAMMAR_PARAM:
            raise invalid_value(f"'{self.param}' cannot be combined with 'tools'.", self.param)
        return name + self.lark.removeprefix("start")

    @property
    def grammar(self) -> str:
        """As the engine takes it."""
        serialised: str = llguidance.LLMatcher.grammar_from_lark(f"{self.lark}\n{OPTIONS}")
        return serialised


@dataclass(frozen=True)
class CompiledGrammar:
    """A constraint that can be followed. The fields are the constraint's."""

    grammar: str
    is_exact: bool = True
    shown_ids: tuple[int, ...] = ()


def constraint_of(request: GenerationRequest) -> Constraint | None:
    """What `response_format` or `structured_outputs` ask for; None where any text will do. Raises ApiError 400."""
    structured, response_format = request.structured_outputs, request.response_format
    asked = None if response_format is None else _of_response_format(response_format)
    if structured is None:
        return asked
    if asked is not None:
        message = "'structured_outputs' and 'response_format' exclude each other."
        raise invalid_value(message, "structured_outputs")
    return _of_structured_outputs(structured)


def json_rule(
    schema: dict[str, JsonValue], param: str, style: Mapping[str, JsonValue] = COMPACT, *, is_loose: bool = False
) -> str:
    """The right side of a rule for JSON that fulfils the schema; `style` has its separators.

    `is_loose`: the JSON fulfils what of the schema a grammar can say. Raises ApiError 400 where it is too large.
    """
    text = json.dumps({**schema, "x-guidance": {**JSON_OPTIONS, **(LOOSE if is_loose else {}), **style}})
    _check_size(schema, len(text), param)
    return f"%json {text}"


def any_of(texts: Iterable[str]) -> str:
    """The right side of a rule for one of the texts."""
    return " | ".join(map(json.dumps, texts))


def _of_response_format(asked: ResponseFormat) -> Constraint | None:
    if asked.type == "text":
        return None
    param = "response_format.json_schema.schema" if asked.json_schema else "response_format"
    schema = asked.json_schema.json_schema if asked.json_schema else ANY_OBJECT
    return Constraint(f"start: {json_rule(schema, param)}", param)


def _of_structured_outputs(asked: StructuredOutputs) -> Constraint:
    if asked.json_schema is not None:
        param = "structured_outputs.json"
        return Constraint(f"start: {json_rule(asked.json_schema, param)}", param)
    if asked.regex is not None:
        param = "structured_outputs.regex"
        _check_regex(asked.regex, param)
        return Constraint(f"start: /{llguidance.regex_to_lark(asked.regex)}/", param)
    if asked.choice is not None:
        param = "structured_outputs.choice"
        if sum(map(len, asked.choice)) > MAX_GRAMMAR_CHARS:
            raise too_large(param)
        return Constraint(f"start: {any_of(asked.choice)}", param)
    assert asked.grammar is not None
    _check_optional_parts(asked.grammar, GRAMMAR_PARAM)
    _check_terminals(asked.grammar)
    return Constraint(asked.grammar, GRAMMAR_PARAM)


def _check_regex(regex: str, param: str) -> None:
    """Refuses what llguidance would silently take for another expression, and what would take it too long."""
    num_backslashes = len(regex) - len(regex.rstrip("\\"))
    if num_backslashes % 2 or (_VERBOSE.search(regex) and "\n" in regex):
        raise invalid_value(f"'{param}' has a regular expression that is not supported here.", param)
    _check_optional_parts(regex, param)


def _check_optional_parts(text: str, param: str) -> None:
    if sum(1 for _ in _OPTIONAL_PART.finditer(text)) > MAX_OPTIONAL_PARTS:
        raise too_large(param)


def _check_terminals(grammar: str) -> None:
    """Terminals are expressions that may name each other: A: /x?/, B: A A, C: B B has four optional parts."""
    terminals = {match[1]: match[2] for match in _TERMINAL.finditer(grammar)}
    counts: dict[str, int] = {}

    def count(name: str, depth: int) -> int:
        if name not in counts:
            if depth > MAX_TERMINAL_DEPTH:
                raise too_large(GRAMMAR_PARAM)
            counts[name] = 0  # one that names itself is no terminal, which the parser will say
            inside = [other for other in _NAME.findall(terminals[name]) if other in terminals]
            own = sum(1 for _ in _OPTIONAL_PART.finditer(terminals[name]))
            counts[name] = min(MAX_OPTIONAL_PARTS + 1, own + sum(count(other, depth + 1) for other in inside))
        return counts[name]

    if any(count(name, 0) > MAX_OPTIONAL_PARTS for name in terminals):
        raise too_large(GRAMMAR_PARAM)


def _check_size(schema: dict[str, JsonValue], num_chars: int, param: str) -> None:
    sizes = [len(value) for _, value in _members(schema) if isinstance(value, dict)]
    if num_chars > MAX_GRAMMAR_CHARS or max(sizes) > MAX_MEMBERS_OF_ONE or sum(sizes) > MAX_MEMBERS:
        raise too_large(param)
    for name, value in _members(schema):
        if name == "multipleOf" and isinstance(value, int | float) and not 0 < value <= MAX_MULTIPLE_OF:
            raise invalid_value(f"'multipleOf' in '{param}' must be above 0 and at most {MAX_MULTIPLE_OF:g}.", param)
        if name == "pattern" and isinstance(value, str):
            _check_regex(value, param)
        if name == "patternProperties" and isinstance(value, dict):
            for pattern in value:
                _check_regex(pattern, param)


def _members(value: JsonValue, name: str = "") -> Iterator[tuple[str, JsonValue]]:
    """Every value inside, each with its name in the object that holds it."""
    yield name, value
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _members(item, key)
    elif isinstance(value, list):
        for item in value:
            yield from _members(item)


def form_too_large(request: GenerationRequest, num_choices: int) -> ApiError:
    """A form that fits one choice, asked of more choices than are worth the work."""
    params = {"structured_outputs": request.structured_outputs, "response_format": request.response_format}
    param = next((name for name, asked in params.items() if asked is not None), "tools")
    return invalid_value(f"'{param}' is too large for {num_choices} choices: ask for fewer at a time.", param)


def too_large(param: str) -> ApiError:
    """More than this server makes a grammar of."""
    return ApiError(f"'{param}' is too large: this server bounds the work it takes.", param=param, code="invalid_value")
