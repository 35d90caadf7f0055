"""Rewrite a schema so that keywords which llguidance lacks are written in those that it has, with the same values.

A keyword that cannot be written so stays where it is: llguidance refuses it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from urllib.parse import unquote

from server.strict_json import JsonValue
from server.structured_output.keywords import arrays, objects
from server.structured_output.keywords.alternatives import exactly_one
from server.structured_output.keywords.document import (
    Document,
    JsonObject,
    NotExpressible,
    TooMuchWork,
    all_of,
    any_of,
    as_list,
)
from server.structured_output.keywords.negation import Negation
from server.structured_output.schema_places import (
    LIST_KEYWORDS,
    OBJECT_KEYWORDS,
    SCHEMA_KEYWORDS,
    join,
    misshapen,
    subschemas,
)

MAX_COMBINATIONS = 512  # of the alternatives that the keywords of one schema are rewritten to
_Rule = Callable[["_Rewriter", JsonObject], list[JsonValue]]
# References may not lead into keywords that are rewritten, nor may copies have names.
_OF_NAMES = OBJECT_KEYWORDS - {"dependentSchemas", "dependencies"}  # whose members have names of the client
_NAMES = frozenset({"$id", "$anchor", "$dynamicAnchor", "$recursiveAnchor"})


@dataclass(frozen=True)
class Rewritten:
    """A schema without the keywords that could be rewritten."""

    schema: JsonObject
    kept: tuple[tuple[str, str], ...] = ()  # keywords that stay, each with its path in the client's schema


def rewritten(schema: JsonObject, *, is_lenient: bool = False) -> Rewritten:
    """Rewrite the schema. It stays as it is if that would take too much work, or if a keyword that has to be rewritten
    refers to a part of the wrong kind, as among the examples, where no schema is looked for.

    `is_lenient`: what llguidance cannot express will be ignored, so nothing may become what it refuses even then:
    members by expressions that overlap.
    """
    inside = [value for _, value in subschemas(schema) if isinstance(value, dict)]
    if not any(not _KEYWORDS.isdisjoint(value) for value in inside) or misshapen(schema) is not None:
        return Rewritten(schema)
    if any(not _NAMES.isdisjoint(value) for value in inside if value is not schema) or _leads_inside(inside):
        return Rewritten(schema)
    rewriter = _Rewriter(schema, is_lenient=is_lenient)
    try:
        result = rewriter.rewrite(schema, "")
    except (NotExpressible, TooMuchWork, RecursionError):
        return Rewritten(schema)
    assert isinstance(result, dict)
    return Rewritten(result, tuple(rewriter.kept))


class _Rewriter:
    """Visit of every subschema, the client's and those that rules make."""

    def __init__(self, root: JsonObject, *, is_lenient: bool) -> None:
        self.is_lenient = is_lenient
        places = list(subschemas(root))
        self.document = Document(root, len(places))
        self.negated = Negation(self.document).of
        self.kept: list[tuple[str, str]] = []
        self._paths = {id(value): path for path, value in places if isinstance(value, dict)}

    def rewrite(self, value: JsonValue, path: str) -> JsonValue:
        """Return a schema with the same values. `path`: of the client's subschema that it was made of."""
        self.document.spend()
        if not isinstance(value, dict):
            return value
        path = self._paths.get(id(value), path)
        extras: list[JsonValue] = []
        replaced: set[str] = set()
        num_combinations = 1
        for keywords, rule in _RULES:
            if keywords.isdisjoint(value):
                continue
            try:
                made_of = rule(self, value)
                num_combinations *= prod(map(_num_alternatives, made_of))
                if num_combinations > MAX_COMBINATIONS:
                    raise NotExpressible
                extras += made_of
                replaced |= keywords
            except NotExpressible:
                self.kept += [(keyword, join(path, keyword)) for keyword in value if keyword in keywords]
        kept = {
            keyword: self._inside(keyword, part, path) for keyword, part in value.items() if keyword not in replaced
        }
        made = [self.rewrite(extra, path) for extra in extras if extra is not True]
        if made:
            kept["allOf"] = [*as_list(kept.get("allOf", [])), *made]
        return kept

    def _inside(self, keyword: str, value: JsonValue, path: str) -> JsonValue:
        if keyword in OBJECT_KEYWORDS and isinstance(value, dict):
            return {name: self.rewrite(schema, path) for name, schema in value.items()}
        if keyword in LIST_KEYWORDS and isinstance(value, list):
            return [self.rewrite(schema, path) for schema in value]
        return self.rewrite(value, path) if keyword in SCHEMA_KEYWORDS else value


def _num_alternatives(schema: JsonValue) -> int:
    """Return how many alternatives of the whole value a schema has: llguidance combines all of them."""
    if not isinstance(schema, dict):
        return 1
    number = prod(map(_num_alternatives, as_list(schema.get("allOf", []))))
    alternatives = as_list(schema.get("anyOf", []))
    return number * max(1, sum(map(_num_alternatives, alternatives)))


def _leads_inside(schemas: Sequence[JsonObject]) -> bool:
    """Return whether a reference leads into a keyword that is rewritten."""
    return any(_passes(schema["$ref"]) for schema in schemas if isinstance(schema.get("$ref"), str))


def _passes(reference: JsonValue) -> bool:
    """Return whether a JSON pointer has a part that is a rewritten keyword, and not the name of a member."""
    is_name = False
    for part in unquote(str(reference)).split("/"):
        if not is_name and part in _KEYWORDS:
            return True
        is_name = not is_name and part in _OF_NAMES
    return False


def _not(rewriter: _Rewriter, schema: JsonObject) -> list[JsonValue]:
    return [rewriter.negated(schema["not"])]


def _if(rewriter: _Rewriter, schema: JsonObject) -> list[JsonValue]:
    if "if" not in schema or schema.keys().isdisjoint({"then", "else"}):
        return []
    condition = schema["if"]
    holds = all_of([condition, schema.get("then", True)])
    fails = all_of([rewriter.negated(condition), schema.get("else", True)])
    return [any_of([holds, fails])]


_RULES: tuple[tuple[frozenset[str], _Rule], ...] = (
    (frozenset({"not"}), _not),
    (frozenset({"if", "then", "else"}), _if),
    (frozenset({"oneOf"}), lambda r, schema: [exactly_one(schema["oneOf"], r.document, r.negated)]),
    (frozenset({"dependentRequired"}), lambda _, schema: objects.dependencies(schema["dependentRequired"])),
    (frozenset({"dependentSchemas"}), lambda _, schema: objects.dependencies(schema["dependentSchemas"])),
    (frozenset({"dependencies"}), lambda _, schema: objects.dependencies(schema["dependencies"])),
    (
        frozenset({"propertyNames"}),
        lambda r, schema: objects.property_names(
            schema["propertyNames"], schema, r.document, with_patterns=not r.is_lenient
        ),
    ),
    (
        frozenset({"unevaluatedProperties"}),
        lambda r, schema: objects.unevaluated_properties(schema["unevaluatedProperties"], schema, r.document),
    ),
    (frozenset({"minProperties", "maxProperties"}), lambda r, schema: objects.member_counts(schema, r.document)),
    (frozenset({"uniqueItems"}), lambda r, schema: arrays.unique_items(schema, r.document)),
    (
        frozenset({"contains", "minContains", "maxContains"}),
        lambda r, schema: arrays.contains(schema, r.document, r.negated),
    ),
    (frozenset({"unevaluatedItems"}), lambda _, schema: arrays.unevaluated_items(schema["unevaluatedItems"], schema)),
)
_KEYWORDS = frozenset[str]().union(*(keywords for keywords, _ in _RULES))
