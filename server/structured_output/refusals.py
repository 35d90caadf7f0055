"""Say why a grammar is refused and where its fault is, from llguidance's message, in words of our own."""

import re
from collections.abc import Sequence

import llguidance

from server.errors import ApiError, invalid_value
from server.strict_json import JsonValue
from server.structured_output.constraints import Constraint, too_large
from server.structured_output.schema_places import misshapen, patterns, place_of

TOO_LARGE = "it is too large"
OUTSIDE = "not present in a registry"
UNSUPPORTED_KEYS_FAULT = "Unimplemented keys"  # in llguidance's message; the keywords follow
ONE_OF_FAULT = "oneOf constraints are not supported"
COUNTS_FAULT = "min/maxProperties only supported"
PATTERNS_FAULT = "patternProperty regexes"
RANGE = "Failed to generate regex for"  # of numbers between bounds
# Parts of messages about keywords that are supported in some schemas -> the keywords.
PARTLY_SUPPORTED = {
    "Unknown format": ["format"],
    ONE_OF_FAULT: ["oneOf"],
    COUNTS_FAULT: ["maxProperties", "minProperties"],
    PATTERNS_FAULT: ["patternProperties"],
}
# Parts of llguidance's messages, and our wording for them: the library's own may quote the client's text. The first
# part that occurs counts.
REASONS = {
    PATTERNS_FAULT: "names that match several of patternProperties are not supported",
    "too big": TOO_LARGE,
    "too large": TOO_LARGE,
    "limit": "it takes more work than this server allows",
    "nsatisfiable": "no text can match it",
    "NoExtension": "no text can match it",
    OUTSIDE: "it refers to something outside itself",
    "does not exist": "it refers to a part that it does not have",
    "look-around": "looking ahead or behind is not supported",
    "lookarounds not supported": "word boundaries, and ^ or $ inside a regular expression, are not supported",
    "Unknown format": "it names a format that is not supported",
    RANGE: "its bounds are too far from 0",
    "egex": "it is not a regular expression that this server supports",
    "end token": "the model has no end token",
    COUNTS_FAULT: "minProperties and maxProperties need additionalProperties false, or all properties required",
    ONE_OF_FAULT: "it is not valid here: the alternatives of oneOf may overlap; anyOf allows that",
}
NO_REASON = "it is not valid"
EXCLUSIVE = ("exclusiveMinimum", "exclusiveMaximum")
FAR = 1 << 62
REGEX = REASONS["egex"]
REGEX_REASONS = {
    "look-around": REASONS["look-around"],
    "backreferences": "references to groups are not supported",
    "unclosed character class": f"{REGEX}: a character class has no ]",
    "unclosed group": f"{REGEX}: a group has no )",
    "unopened group": f"{REGEX}: this ) closes no group",
    "missing expression": f"{REGEX}: there is nothing to repeat",
    "invalid repetition count": f"{REGEX}: the repetition's minimum is above its maximum",
    "invalid character class range": f"{REGEX}: the range ends before it begins",
    "unrecognized escape": f"{REGEX}: unknown escape",
    "Unicode property not found": f"{REGEX}: unknown Unicode property",
    "duplicate capture group": f"{REGEX}: another group has this name",
}
SCHEMA_KEYWORDS = frozenset(
    {"contains", "contentEncoding", "contentMediaType", "contentSchema", "dependentRequired", "dependentSchemas", "if"}
    | {"$dynamicAnchor", "$dynamicRef", "$recursiveAnchor", "$recursiveRef"}
    | {"dependencies", "else", "maxContains", "minContains", "not", "propertyNames", "then", "unevaluatedItems"}
    | {"unevaluatedProperties", "uniqueItems", "oneOf", "minProperties", "maxProperties", "patternProperties"}
)
_EXCERPT = re.compile(r"\n +\d+ \| ")  # of the grammar, behind the message
_PARSE_ERROR = re.compile(r"regex parse error:\n    (.*)\n    ( *)\^.*\nerror: (.*)")
_LINE = re.compile(r"at (\d+)\(")
_POINTER = re.compile(r"Pointer '(.*)' does not exist")
_QUOTED = re.compile(r'invalid regex ".*" \(in regex\): |; \w+ in regex /.*', re.DOTALL)  # the client's expression
_FORMAT = re.compile(r"Unknown format: (.*)")


def refusal(fault: str, constraint: Constraint) -> ApiError:
    """Build the error for a constraint whose grammar llguidance refused with the message `fault`."""
    message, source = _EXCERPT.split(fault, maxsplit=1)[0], constraint.source
    if isinstance(source, dict):
        reason = _of_schema(message, source, constraint.kept)
    else:
        reason = None if source is None else _of_regex(message, source)
        message = _QUOTED.sub("", message)
    if reason is None:
        reason = _general(message) + (_of_grammar(message) if constraint.is_written_in_lark else "")
    if reason == TOO_LARGE:
        return too_large(constraint.param)
    return invalid_value(f"'{constraint.param}' cannot be followed: {reason}.", constraint.param)


def ignored_keywords(fault: str, kept: Sequence[tuple[str, str]]) -> list[str]:
    """Return the schema keywords that are ignored if this fault is: those of the message, which names the first alone,
    and of those that were not rewritten the ones that llguidance never expresses. `kept`: as in Constraint."""
    ours = {keyword for keyword, _ in kept} - PARTLY_EXPRESSED
    named = unsupported_keywords(fault)
    return sorted(ours.union(named)) if named else []


def unsupported_keywords(fault: str) -> list[str]:
    """Return the schema keywords that llguidance's message says it cannot express."""
    message = _EXCERPT.split(fault, maxsplit=1)[0]
    for part, keywords in PARTLY_SUPPORTED.items():
        if part in message:
            return keywords
    if UNSUPPORTED_KEYS_FAULT not in message:
        return []
    return sorted(set(re.findall(r"\$?[A-Za-z]+", message)) & SCHEMA_KEYWORDS)


PARTLY_EXPRESSED = frozenset({"oneOf", "minProperties", "maxProperties"})  # by llguidance, in some schemas


def _general(message: str) -> str:
    """Return the reason alone."""
    if UNSUPPORTED_KEYS_FAULT in message:
        keys = unsupported_keywords(message)
        return f"it uses unsupported keywords ({', '.join(keys)})" if keys else "it uses unsupported keywords"
    return next((ours for theirs, ours in REASONS.items() if theirs in message), NO_REASON)


def _of_schema(message: str, schema: dict[str, JsonValue], kept: Sequence[tuple[str, str]]) -> str | None:
    """Return the reason and the path of the fault; None if the place is not known. `kept`: as in Constraint."""
    if (fault := misshapen(schema)) is not None:
        return f"{NO_REASON}: {fault}"
    for path, pattern in patterns(schema) if "regex parse error" in message else ():
        if (reason := _of_regex(message, pattern)) is not None:
            return f"{reason} of {path}"
    if "Unknown format" not in message and (keywords := unsupported_keywords(message)):
        paths = (path for keyword, path in kept if keyword in keywords)
        return _general(message) + _at(next(paths, None) or place_of(schema, keywords))
    for part, theirs, keyword, mark in (
        (_FORMAT, "Unknown format", "format", ""),
        (_POINTER, "does not exist", "$ref", "#"),
    ):
        if match := part.search(message):
            return REASONS[theirs] + _at(_place_of_text(schema, keyword, mark + match[1]))
    if RANGE in message:
        return REASONS[RANGE] + _at(place_of(schema, ["minimum", "maximum", *EXCLUSIVE], _is_far))
    if OUTSIDE in message:
        return REASONS[OUTSIDE] + _at(place_of(schema, ["$ref"], lambda value: not str(value).startswith("#")))
    return None


def _is_far(bound: JsonValue) -> bool:
    return isinstance(bound, int | float) and abs(bound) >= FAR


def _place_of_text(schema: JsonValue, keyword: str, text: str) -> str | None:
    return place_of(schema, [keyword], lambda value: value == text)


def _of_regex(message: str, regex: str) -> str | None:
    """Return the reason and the character of the fault; None if the message is not about this regular expression."""
    match = _PARSE_ERROR.search(message)
    if match is None or match[1] != llguidance.regex_to_lark(regex):
        return None
    reason = next((ours for theirs, ours in REGEX_REASONS.items() if theirs in match[3]), REGEX)
    return f"{reason}, at character {_character(regex, len(match[2]))}"


def _character(regex: str, column: int) -> int:
    """Return which character of the expression, from 1, is at a column, from 0, of its translation.

    `a/[` is translated to `a\\/[`: column 3 is character 3.
    """
    return sum(_width(regex[:end]) <= column for end in range(1, len(regex) + 1)) + 1


def _width(start: str) -> int:
    """Return how many columns the start of an expression takes in its translation, also if it ends inside an escape."""
    is_inside = (len(start) - len(start.rstrip("\\"))) % 2
    return len(llguidance.regex_to_lark(start[: len(start) - is_inside])) + is_inside


def _of_grammar(message: str) -> str:
    match = _LINE.match(message)
    return f", in line {match[1]}" if match else ""


def _at(path: str | None) -> str:
    return f", at {path}" if path else ""
