"""Bound the automata that `multipleOf` needs: one state per remainder.

llguidance merges the schemas that apply to one value, and takes the least common multiple of their `multipleOf`s. Its
own limits do not see that work: two small numbers suffice for gigabytes.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal
from itertools import chain

from server.errors import ApiError, invalid_value
from server.strict_json import JsonValue
from server.structured_output.json_pointer import at_pointer
from server.structured_output.value_groups import JsonObject, item_groups, property_groups

MAX_MULTIPLE_OF = 10_000.0
MAX_COMBINED = 50_000  # states for one value
MAX_STATES = 100_000  # states of one grammar
MAX_WORK = 30_000  # subschemas visited in one request, counted once for each combination in which they meet
# Keywords whose subschemas apply to the same value. Alternatives count as if all applied: their automata run together.
_SAME_VALUE = ("allOf", "anyOf", "oneOf", "not", "if", "then", "else", "$ref", "dependentSchemas", "dependencies")
_RANGE = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "type")


class WorkBudget:
    """Work that may still be spent on the schemas of one request: with `$ref`, small ones combine in many ways."""

    def __init__(self) -> None:
        self._remaining = MAX_WORK

    def spend(self, amount: int, param: str) -> None:
        """Count the work. Raises ApiError 400 if it exceeds the budget."""
        self._remaining -= amount
        if self._remaining < 0:
            raise invalid_value(
                f"'{param}' uses 'multipleOf' and combines its subschemas in too many ways (more than {MAX_WORK} in "
                "the request): use fewer of 'allOf', 'anyOf' and '$ref'.",
                param,
            )


def count_states(schema: JsonObject, param: str, budget: WorkBudget | None = None) -> int:
    """Return the states of all automata of the schema's `multipleOf`s. Raises ApiError 400 beyond the bounds."""
    multiples = [value for value in _objects(schema) if _is_number(value.get("multipleOf"))]
    if not multiples:
        return 0
    for value in multiples:
        _check_multiple(value, param)
    states = _Walk(schema, param, budget or WorkBudget()).count_states()
    check_states(states, param)
    return states


def check_states(num_states: int, param: str) -> None:
    """Raise ApiError 400 if one grammar has more states for `multipleOf` than MAX_STATES."""
    if num_states > MAX_STATES:
        raise invalid_value(
            f"The 'multipleOf' values in '{param}' add up to {num_states}, counting combinations and decimals as "
            f"integers; at most {MAX_STATES} are supported: use smaller or fewer values.",
            param,
        )


def _check_multiple(schema: JsonObject, param: str) -> None:
    value = schema["multipleOf"]
    assert isinstance(value, int | float)
    if not 0 < value <= MAX_MULTIPLE_OF:
        raise invalid_value(f"'multipleOf' in '{param}' must be above 0 and at most {MAX_MULTIPLE_OF:g}.", param)


@dataclass(frozen=True)
class _Automaton:
    num_states: int
    ranges: frozenset[str]  # equal automata are shared, those with other ranges are not


class _Walk:
    """Visit of every group of subschemas that apply to one value."""

    def __init__(self, root: JsonObject, param: str, budget: WorkBudget) -> None:
        self._root = root
        self._param = param
        self._automata: set[_Automaton] = set()
        self._seen: set[frozenset[int]] = set()
        self._budget = budget
        self._ranges: dict[int, str] = {}  # id of a subschema -> its range, which may be a long text
        ids = {"$id", "id"} if any(_is_old_draft(value) for value in _objects(root)) else {"$id"}
        self._has_inner_base = any(ids & value.keys() for value in _objects(root) if value is not root)

    def count_states(self) -> int:
        """Return the sum over all distinct automata. Raises ApiError 400."""
        stack: list[Sequence[JsonValue]] = [[self._root]]
        while stack:
            members = self._closure(stack.pop())
            key = frozenset(map(id, members))
            if key in self._seen:
                continue
            self._seen.add(key)
            self._add_automaton(members)
            for group in chain(property_groups(members), item_groups(members)):
                if group:
                    self._budget.spend(len(group), self._param)
                    stack.append(group)
        return sum(automaton.num_states for automaton in self._automata)

    def _closure(self, group: Iterable[JsonValue]) -> list[JsonObject]:
        """Return the group with all subschemas that apply to the same value."""
        found: dict[int, JsonObject] = {}
        stack = list(group)
        while stack:
            self._budget.spend(1, self._param)
            schema = stack.pop()
            if not isinstance(schema, dict) or id(schema) in found:
                continue
            found[id(schema)] = schema
            for keyword in _SAME_VALUE:
                if keyword in schema:
                    stack += self._applied(keyword, schema[keyword])
            if any(isinstance(schema.get(keyword), str) for keyword in ("$dynamicRef", "$recursiveRef")):
                raise self._unsupported_reference()
        return list(found.values())

    def _applied(self, keyword: str, value: JsonValue) -> list[JsonValue]:
        if keyword == "$ref":
            return [self._resolve(value)] if isinstance(value, str) else []
        if isinstance(value, list):
            return value
        if keyword in ("dependentSchemas", "dependencies") and isinstance(value, dict):
            return list(value.values())
        return [value]

    def _resolve(self, reference: str) -> JsonValue:
        if self._has_inner_base:
            raise self._unsupported_reference()
        try:
            return at_pointer(self._root, reference)
        except LookupError:
            raise self._unsupported_reference() from None

    def _add_automaton(self, members: Sequence[JsonObject]) -> None:
        multiples = [Decimal(repr(value)).normalize() for value in _multiples(members)]
        if not multiples:
            return
        num_states = combined(multiples)
        if num_states is None:
            raise invalid_value(
                f"The 'multipleOf' values that can meet in one number of '{self._param}' have a least common multiple "
                f"above {MAX_COMBINED}, counting decimals as integers: use smaller values, or values that divide each "
                "other.",
                self._param,
            )
        self._automata.add(_Automaton(num_states, frozenset(map(self._range_of, members))))

    def _range_of(self, schema: JsonObject) -> str:
        if id(schema) not in self._ranges:
            self._ranges[id(schema)] = repr([schema.get(keyword) for keyword in _RANGE])
        return self._ranges[id(schema)]

    def _unsupported_reference(self) -> ApiError:
        return invalid_value(
            f"'{self._param}' uses 'multipleOf', so each '$ref' must be a JSON pointer to a part of the schema "
            "('#/$defs/NAME'), without '$id' inside it.",
            self._param,
        )


def combined(numbers: Sequence[Decimal]) -> int | None:
    """Return the least common multiple, in units of the finest decimal place; None if it is above MAX_COMBINED."""
    places = max(0, *(-_exponent(number) for number in numbers))
    common = 1
    for number in numbers:
        common = math.lcm(common, int(number.scaleb(places)))
        if common > MAX_COMBINED:
            return None
    return common


def _exponent(number: Decimal) -> int:
    exponent = number.as_tuple().exponent
    assert isinstance(exponent, int)
    return exponent


def _multiples(members: Iterable[JsonObject]) -> Iterator[int | float]:
    for member in members:
        value = member.get("multipleOf")
        if isinstance(value, int | float) and _is_number(value):
            yield value


def _objects(value: JsonValue) -> Iterator[JsonObject]:
    """Yield every object inside the value."""
    stack = [value]
    while stack:
        item = stack.pop()
        if isinstance(item, dict):
            yield item
            stack += item.values()
        elif isinstance(item, list):
            stack += item


def _is_old_draft(schema: JsonObject) -> bool:
    """Return whether the schema declares a draft in which `id` changes what references are relative to."""
    return "draft-0" in str(schema.get("$schema"))


def _is_number(value: JsonValue | None) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
