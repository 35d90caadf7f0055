"""Random JSON schemas with bounded documents, so that an answer at temperature 1 ends."""

import random
from collections.abc import Callable
from typing import Any

Schema = dict[str, Any]
MAX_DEPTH = 3
ODD_STRINGS = [
    "",
    " ",
    "naïve",
    "日本語",
    "\U00010348",
    'quote " and \\',
    "tab\tnew\nline",
    "</s>",
    "[INST]",
    "null",
    "\u2028",
]
PATTERNS = [
    "^[a-z]{1,8}$",
    "^[A-Z]{2}-[0-9]{3}$",
    "^(red|green|blue)$",
    "^\\d{4}-\\d{2}$",
    "^[αβγ]{2,5}$",
    "^x?y{0,3}$",
]


def random_schema(rng: random.Random) -> Schema:
    """Draw a schema of an object or an array, with definitions that its parts may refer to."""
    definitions = {f"d{i}": _leaf(rng) for i in range(2)} | {"pair": _pair_of_references()}
    top = _object(rng, 0) if rng.random() < 0.8 else _array(rng, 0)
    return {**top, "$defs": definitions}


def _any(rng: random.Random, depth: int) -> Schema:
    if depth >= MAX_DEPTH or rng.random() < 0.5:
        return _leaf(rng)
    made: list[Callable[[], Schema]] = [
        lambda: _object(rng, depth),
        lambda: _array(rng, depth),
        lambda: {"anyOf": [_leaf(rng), _object(rng, depth)]},
        lambda: {"$ref": rng.choice(["#/$defs/d0", "#/$defs/d1", "#/$defs/pair"])},
    ]
    return rng.choice(made)()


def _object(rng: random.Random, depth: int) -> Schema:
    names = rng.sample(["name", "age", "kind", "größe", "a b", 'q"', "tags", "x1", "value", "id"], rng.randint(1, 4))
    properties = {name: _any(rng, depth + 1) for name in names}
    required = [name for name in names if rng.random() < 0.7]
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


def _array(rng: random.Random, depth: int) -> Schema:
    low = rng.randint(0, 2)
    return {"type": "array", "items": _any(rng, depth + 1), "minItems": low, "maxItems": low + rng.randint(0, 2)}


def _leaf(rng: random.Random) -> Schema:
    low = rng.randint(-1000, 1000)
    made: list[Callable[[], Schema]] = [
        lambda: {"type": "integer", "minimum": low, "maximum": low + rng.randint(0, 5000)},
        lambda: {"type": "integer", "exclusiveMinimum": low, "maximum": low + 40, "multipleOf": rng.choice([2, 3, 5])},
        lambda: {"type": "number", "minimum": 0, "exclusiveMaximum": rng.choice([1, 2.5, 100])},
        lambda: {"type": "string", "minLength": rng.randint(0, 3), "maxLength": rng.randint(3, 12)},
        lambda: {"type": "string", "pattern": rng.choice(PATTERNS)},
        lambda: {"type": "string", "format": rng.choice(["ipv4", "uuid"])},
        lambda: {"enum": rng.sample([*ODD_STRINGS, 1, -2.5, None, True, {"a": [1]}], rng.randint(1, 4))},
        lambda: {"const": rng.choice(ODD_STRINGS)},
        lambda: {"type": rng.choice([["boolean", "null"], "boolean", "null"])},
    ]
    return rng.choice(made)()


def _pair_of_references() -> Schema:
    return {
        "type": "array",
        "prefixItems": [{"$ref": "#/$defs/d0"}, {"$ref": "#/$defs/d1"}],
        "items": False,
        "minItems": 2,
    }


def random_parameters(rng: random.Random) -> Schema:
    """Draw a tool's parameters: always an object."""
    definitions = {f"d{i}": _leaf(rng) for i in range(2)} | {"pair": _pair_of_references()}
    return {**_object(rng, 0), "$defs": definitions}
