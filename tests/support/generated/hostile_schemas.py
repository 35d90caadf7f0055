"""Random schemas and grammars that are large, deep, contradictory or costly, beside harmless ones."""

import random
from collections.abc import Callable
from typing import Any

from tests.support.generated.random_schemas import random_schema

Schema = dict[str, Any]
NUMBERS = [2, 3, 7, 97, 251, 997, 4999, 9967, 9973, 49_999, 10_000_019, 0.01, 0.1, 9999.9999, 2.5, -1, 10**18]
COUNTS = [0, 1, 2, 10, 100, 5000, 10**6, 10**9]
PARTS = [r"\w", "a", "(a|b)", "[^x]", r"\d", ".", "(foo|foobar|fo)", r"\s", "[α-ω]", "(a?b?)"]
REPEATS = ["", "*", "+", "?", "{1,40}", "{0,200}", "{5}", "{100,}", "*?"]


def hostile_constraint(rng: random.Random) -> dict[str, Any]:
    """Draw the fields of a request that constrain its output, as a client sends them."""
    kinds: list[Callable[[], dict[str, Any]]] = [
        lambda: {"structured_outputs": {"json": random_schema(rng)}},
        lambda: {"structured_outputs": {"json": hostile_schema(rng, 0)}},
        lambda: {"structured_outputs": {"json": hostile_schema(rng, 0)}},
        lambda: {"structured_outputs": {"regex": hostile_regex(rng)}},
        lambda: {"structured_outputs": {"grammar": hostile_grammar(rng)}},
        lambda: {"structured_outputs": {"choice": [rng.choice("ab ") * rng.randint(1, 500) for _ in range(50)]}},
    ]
    return rng.choice(kinds)()


def hostile_schema(rng: random.Random, depth: int) -> Schema:
    if depth > 4:
        return _number(rng)
    kinds: list[Callable[[], Schema]] = [
        lambda: _number(rng),
        lambda: {rng.choice(["allOf", "anyOf", "oneOf"]): [hostile_schema(rng, depth + 1) for _ in range(_few(rng))]},
        lambda: _properties(rng, depth),
        lambda: {"type": "array", "items": hostile_schema(rng, depth + 1), **_range(rng, "Items")},
        lambda: {"type": "array", "prefixItems": [_number(rng) for _ in range(_few(rng))]},
        lambda: {"type": "string", "pattern": hostile_regex(rng), **_range(rng, "Length")},
        lambda: {"type": "string", **_range(rng, "Length")},
        lambda: {"enum": ["x" * rng.randint(0, 3000) for _ in range(rng.choice([1, 20, 400]))]},
        lambda: {"$defs": {"a": hostile_schema(rng, depth + 1)}, "$ref": rng.choice(["#", "#/$defs/a", "#/nowhere"])},
        lambda: {"type": "object", "patternProperties": {hostile_regex(rng): hostile_schema(rng, depth + 1)}},
    ]
    return rng.choice(kinds)()


def hostile_regex(rng: random.Random) -> str:
    parts = [rng.choice(PARTS) + rng.choice(REPEATS) for _ in range(rng.randint(1, 6))]
    inner = "".join(parts)
    for _ in range(rng.randint(0, 3)):
        inner = f"({inner}){rng.choice(REPEATS)}"
    return inner * rng.choice([1, 1, 2, 20])


def hostile_grammar(rng: random.Random) -> str:
    names = [f"r{i}" for i in range(rng.randint(1, 8))]
    terminals = [f"T{i}" for i in range(rng.randint(1, 6))]
    lines = [f"start: {' '.join(rng.choices(names + terminals, k=3))}"]
    lines += [
        f"{name}: " + " | ".join(" ".join(rng.choices(names + terminals, k=2)) for _ in range(3)) for name in names
    ]
    lines += [f"{name}: /{hostile_regex(rng)}/" for name in terminals]
    if rng.random() < 0.3:
        lines.append(f'r9: %json {{"type": "integer", "multipleOf": {rng.choice(NUMBERS)}}}')
    return "\n".join(lines)


def _number(rng: random.Random) -> Schema:
    schema: Schema = {"type": rng.choice(["integer", "number"]), "multipleOf": rng.choice(NUMBERS)}
    if rng.random() < 0.5:
        schema |= {"minimum": rng.choice([0, -(10**15), 1.5]), "maximum": rng.choice([10, 10**15, 10**300])}
    return schema


def _properties(rng: random.Random, depth: int) -> Schema:
    count = rng.choice([1, 3, 10, 40])
    properties = {f"p{i}": _number(rng) if count > 10 else hostile_schema(rng, depth + 1) for i in range(count)}
    return {
        "type": "object",
        "properties": properties,
        "required": rng.sample(sorted(properties), rng.randint(0, count)),
    }


def _range(rng: random.Random, of: str) -> Schema:
    low = rng.choice(COUNTS)
    return {f"min{of}": low, f"max{of}": rng.choice([low, low + 1, *COUNTS])}


def _few(rng: random.Random) -> int:
    return rng.choice([1, 2, 2, 3, 8, 30])
