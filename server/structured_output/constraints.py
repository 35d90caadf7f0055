"""Translate a request's response format to a grammar in llguidance's notation (a dialect of Lark's)."""

import json
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass

import llguidance

from engine.grammars.matcher import FEW_READINGS
from server.errors import ApiError, invalid_value
from server.schemas.generation import GenerationRequest
from server.schemas.structured import MAX_GRAMMAR_CHARS, ResponseFormat, StructuredOutputs
from server.strict_json import JsonValue
from server.structured_output.gbnf import as_lark
from server.structured_output.inline_schemas import inline_schemas
from server.structured_output.keywords.numbers import with_bounds_that_hold
from server.structured_output.keywords.rewriting import Rewritten, rewritten
from server.structured_output.multiples import WorkBudget, check_states, count_states
from server.structured_output.optional_properties import TooManyAlternatives, most_optional
from server.structured_output.reference_loops import endless_reference

# The model chooses each token among those that the grammar allows. Where the grammar allows one text only, llguidance
# could force that text's usual tokens, but each token would then cost time in proportion to the text's length.
OPTIONS = '%llguidance {"no_forcing": true}\n'
# Compact, because a small model may write nothing but spaces where they are allowed. Unsupported keywords are errors.
JSON_OPTIONS: dict[str, JsonValue] = {"whitespace_flexible": False, "lenient": False, "coerce_one_of": False}
LENIENT: dict[str, JsonValue] = {"lenient": True, "coerce_one_of": True}  # unsupported keywords are ignored
ANY_OBJECT: dict[str, JsonValue] = {"type": "object"}
MAX_MEMBERS_OF_ONE = 1000  # of one object in a schema: work grows with the square
MAX_MEMBERS = 2500
MAX_OPTIONAL = 700  # properties of one object and its alternatives: llguidance follows up to 28 items for each of them
COMPACT: Mapping[str, JsonValue] = {"item_separator": ",", "key_separator": ":"}
# In one regular expression or grammar: work grows with the square of those in a row, 0.3 s for a thousand of \w*.
MAX_OPTIONAL_PARTS = 1000
_OPTIONAL_PART = re.compile(r"[?*{]|\(\||\|\)|\|\||\(\)")
MAX_TERMINAL_DEPTH = 100
_NAME = re.compile(r"[A-Z_][A-Z_0-9]*")
_TERMINAL = re.compile(r"^[ \t]*+([A-Z_][A-Z_0-9]*+)[^:\n]*+:(.*(?:\n[ \t]*+\|.*)*+)", re.MULTILINE)
_VERBOSE = re.compile(r"\(\?[a-zA-Z]*x")


@dataclass(frozen=True)
class Constraint:
    """Grammar that an answer must match, in Lark's notation with the rule `start`."""

    lark: str
    param: str  # the request's parameter that it comes from
    is_exact: bool = True  # a leading space belongs to the text and is not removed as SentencePiece's own
    shown_ids: tuple[int, ...] = ()  # special tokens that are part of the text
    is_whole_grammar: bool = False  # written by the client, with rules of its own
    num_states: int = 0  # of the automata that its schema's `multipleOf`s need
    source: dict[str, JsonValue] | str | None = None  # the client's schema or regular expression
    kept: tuple[tuple[str, str], ...] = ()  # keywords of the schema that were not rewritten, each with its path
    is_written_in_lark: bool = False  # by the client: positions in it are those of the client's text

    def as_rule(self, name: str) -> str:
        """Write it as a rule of another grammar. Raises ApiError 400 if it is a complete grammar from the client."""
        if self.is_whole_grammar:
            raise invalid_value(f"'{self.param}' cannot be combined with 'tools'.", self.param)
        return name + self.lark.removeprefix("start")

    @property
    def grammar(self) -> str:
        """Serialized grammar, as the engine expects it."""
        last_line = "" if self.is_whole_grammar else FEW_READINGS
        serialized: str = llguidance.LLMatcher.grammar_from_lark(f"{self.lark}\n{OPTIONS}{last_line}")
        return serialized


@dataclass(frozen=True)
class CompiledGrammar:
    """Grammar of a constraint that passed its check; the other fields are the constraint's."""

    grammar: str
    is_exact: bool = True
    shown_ids: tuple[int, ...] = ()


def constraint_of(request: GenerationRequest) -> Constraint | None:
    """Translate `response_format` or `structured_outputs`; None if any text is allowed. Raises ApiError 400."""
    (structured, name), response_format = request.outputs, request.response_format
    constraint = None if response_format is None else _from_response_format(response_format)
    if structured is None:
        return constraint
    if constraint is not None:
        raise invalid_value(f"'{name}' and 'response_format' exclude each other.", name)
    return _from_structured_outputs(structured, name)


def schema_constraint(
    schema: dict[str, JsonValue],
    param: str,
    style: Mapping[str, JsonValue] = COMPACT,
    *,
    is_lenient: bool = False,
    budget: WorkBudget | None = None,
) -> Constraint:
    """Constrain a text to JSON that is valid by the schema; `style` has the separators.

    `is_lenient`: ignore schema keywords that no grammar can express. `budget`: shared with other schemas.
    Raises ApiError 400 if the schema is too large, or refers to itself without end.
    """
    if (path := endless_reference(schema)) is not None:
        raise invalid_value(f"'{param}' cannot be followed: it refers to itself without end, at {path}.", param)
    options = {**JSON_OPTIONS, **(LENIENT if is_lenient else {}), **style}
    result = _rewritten(schema, param, is_lenient=is_lenient)
    text = json.dumps({**with_bounds_that_hold(result.schema), "x-guidance": options})
    _check_size(result.schema, len(text), param)
    num_states = count_states(result.schema, param, budget)
    return Constraint(f"start: %json {text}", param, num_states=num_states, source=schema, kept=result.kept)


def _rewritten(schema: dict[str, JsonValue], param: str, *, is_lenient: bool) -> Rewritten:
    """Rewrite the schema, unless it becomes too large by that. Raises ApiError 400 if it is too large as it is."""
    _check_size(schema, len(json.dumps(schema)), param)
    result = rewritten(schema, is_lenient=is_lenient)
    try:
        _check_size(result.schema, len(json.dumps(result.schema)), param)
    except ApiError:
        return Rewritten(schema)
    return result


def any_of(texts: Iterable[str]) -> str:
    """Write the right side of a rule for one of the texts."""
    return " | ".join(map(json.dumps, texts))


def _from_response_format(value: ResponseFormat) -> Constraint | None:
    if value.type == "text":
        return None
    param = "response_format.json_schema.schema" if value.json_schema else "response_format"
    return schema_constraint(value.schema_of_output or ANY_OBJECT, param)


def _from_structured_outputs(value: StructuredOutputs, name: str) -> Constraint:
    """Translate the constraint. `name`: "structured_outputs", or the name of its only member in another spelling."""
    param = f"{name}.{value.kind}" if name == "structured_outputs" else name
    if value.json_schema is not None:
        return schema_constraint(value.json_schema, param)
    if value.regex is not None:
        _check_regex(value.regex, param)
        return Constraint(f"start: /{llguidance.regex_to_lark(value.regex)}/", param, source=value.regex)
    if value.choice is not None:
        if sum(map(len, value.choice)) > MAX_GRAMMAR_CHARS:
            raise too_large(param)
        return Constraint(f"start: {any_of(value.choice)}", param)
    assert value.grammar is not None
    grammar = as_lark(value.grammar, param)
    _check_optional_parts(grammar, param)
    _check_terminals(grammar, param)
    _check_inline_schemas(grammar, param)
    return Constraint(grammar, param, is_whole_grammar=True, is_written_in_lark=grammar == value.grammar)


def _check_regex(regex: str, param: str) -> None:
    """Refuse expressions that llguidance would silently misread, and those that would take too long."""
    num_backslashes = len(regex) - len(regex.rstrip("\\"))
    if num_backslashes % 2 or (_VERBOSE.search(regex) and "\n" in regex):
        raise invalid_value(f"'{param}' has a regular expression that is not supported here.", param)
    _check_optional_parts(regex, param)


def _check_optional_parts(text: str, param: str) -> None:
    if sum(1 for _ in _OPTIONAL_PART.finditer(text)) > MAX_OPTIONAL_PARTS:
        raise too_large(param)


def _check_terminals(grammar: str, param: str) -> None:
    """Bound the optional parts of terminals, which may refer to each other: A: /x?/, B: A A, C: B B has four."""
    terminals = {match[1]: match[2] for match in _TERMINAL.finditer(grammar)}
    counts: dict[str, int] = {}

    def count(name: str, depth: int) -> int:
        if name not in counts:
            if depth > MAX_TERMINAL_DEPTH:
                raise too_large(param)
            counts[name] = 0  # a terminal that refers to itself is invalid, which the parser reports
            inside = [other for other in _NAME.findall(terminals[name]) if other in terminals]
            own = sum(1 for _ in _OPTIONAL_PART.finditer(terminals[name]))
            counts[name] = min(MAX_OPTIONAL_PARTS + 1, own + sum(count(other, depth + 1) for other in inside))
        return counts[name]

    if any(count(name, 0) > MAX_OPTIONAL_PARTS for name in terminals):
        raise too_large(param)


def _check_inline_schemas(grammar: str, param: str) -> None:
    """Check the schemas of %json like those of other parameters, and their `multipleOf`s together."""
    num_states, budget = 0, WorkBudget()
    for schema in inline_schemas(grammar, param):
        _check_size(schema, 0, param)
        num_states += count_states(schema, param, budget)
    check_states(num_states, param)


def _check_size(schema: dict[str, JsonValue], num_chars: int, param: str) -> None:
    objects = [value for _, value in _members(schema) if isinstance(value, dict)]
    sizes = [*map(len, objects)]
    for size, limit, what in (
        (num_chars, MAX_GRAMMAR_CHARS, "characters as JSON in ASCII"),
        (max(sizes), MAX_MEMBERS_OF_ONE, "members in one object"),
        (sum(sizes), MAX_MEMBERS, "members in all its objects"),
    ):
        if size > limit:
            raise too_large(param, f"it has {size:,} {what}, and this server takes {limit:,}")
    _check_optional(schema, objects, param)
    for name, value in _members(schema):
        if name == "pattern" and isinstance(value, str):
            _check_regex(value, param)
        if name == "patternProperties" and isinstance(value, dict):
            for pattern in value:
                _check_regex(pattern, param)


def _check_optional(schema: dict[str, JsonValue], objects: Collection[dict[str, JsonValue]], param: str) -> None:
    try:
        num = most_optional(schema, objects, MAX_OPTIONAL)
    except TooManyAlternatives:
        raise too_large(param, "its parts apply to the same values in too many ways") from None
    if num > MAX_OPTIONAL:
        what = "optional properties in one object and its alternatives"
        raise too_large(param, f"it has {num:,} {what}, and this server takes {MAX_OPTIONAL:,}")


def _members(value: JsonValue, name: str = "") -> Iterator[tuple[str, JsonValue]]:
    """Yield the value and every value inside it, each with its key in the object that contains it."""
    yield name, value
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _members(item, key)
    elif isinstance(value, list):
        for item in value:
            yield from _members(item)


def grammar_too_large(request: GenerationRequest, num_choices: int) -> ApiError:
    """Build the error for a grammar that is too large for the number of choices, though not for one."""
    structured, name = request.outputs
    params = {name: structured, "response_format": request.response_format}
    param = next((name for name, value in params.items() if value is not None), "tools")
    return invalid_value(f"'{param}' is too large for {num_choices} choices: request fewer at a time.", param)


def too_large(param: str, why: str = "this server limits the work of a grammar") -> ApiError:
    """Build the error for a constraint beyond the limits of this module."""
    return ApiError(f"'{param}' is too large: {why}.", param=param, code="invalid_value")
