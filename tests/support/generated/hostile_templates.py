"""Random chat templates: loops, macros and growing values around every operation that jinja has."""

import random

VALUES = [
    "messages",
    "messages[0].content",
    "range(100000)",
    "range(1000)",
    "n.v",
    "n.s",
    "'x' * 100000",
    "[0] * 100000",
    "[[0] * 8000000] * 8000000",
    "'9' * 4000",
    "(1, (2, 3))",
    "{'a': n.v}",
]
USES = [
    "{} | sort | list",
    "{} | string | upper",
    "{} | tojson",
    "{} | join(',')",
    "{} | unique | list",
    "{} | map('string') | list",
    "{} | selectattr('role', 'equalto', 'user') | list",
    "{} | list",
    "{} | reverse | list",
    "{} | length",
    "{} | replace('l', 'mmmm')",
    "{} | max",
    "{} | batch(3, 0) | list",
    "{} | groupby('role')",
    "{} | wordwrap(5)",
    "{} | title",
    "{} | int",
    "{} | indent(4)",
    "{} == n.v",
    "'zz' in {}",
    "{}[1:]",
    "({}) ~ ({})",
    "({}).split(' ')",
    "({}).center(900)",
    "'{{:999}}'.format(1)",
    "{} is in(range(100000))",
    "dict(a={})",
    "+".join(["1.5 * i"] * 60),
]
GROWTH = [
    "{% set n.v = [n.v, n.v] %}",
    "{% set n.v = (n.v, n.v) %}",
    "{% set n.s = n.s ~ n.s %}",
    "{% set n.s = n.s + 'abc' %}",
    "{% set n.v = {1: n.v, 2: n.v} %}",
    "",
]


def hostile_template(rng: random.Random) -> str:
    """Draw a template. Many cannot be used at all; some work with a short conversation."""
    body = _body(rng, 0)
    macro = f"{{% macro f(i) %}}{_body(rng, 1)}{{% endmacro %}}" if rng.random() < 0.3 else ""
    calls = "{{ f(1) }}" * rng.randint(1, 4) if macro else ""
    tail = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
    return f"{{% set n = namespace(v=[1], s='ab') %}}{macro}{body}{calls}{tail}"


def _body(rng: random.Random, depth: int) -> str:
    parts = [rng.choice(GROWTH)]
    for _ in range(rng.randint(1, 3)):
        use = rng.choice(USES)
        expression = (
            use.replace("{{", "{").replace("}}", "}") if "{}" not in use else use.replace("{}", rng.choice(VALUES))
        )
        parts.append(
            f"{{% set x = {expression} %}}" if rng.random() < 0.7 else f"{{{{ ({expression}) | string | length }}}}"
        )
    inner = "".join(parts)
    if depth < 3 and rng.random() < 0.7:
        turns = rng.choice([1, 3, 30, 1000, 100000])
        return (
            f"{{% for i in range({turns}) %}}{inner}{_body(rng, depth + 1) if rng.random() < 0.5 else ''}{{% endfor %}}"
        )
    return f"{{% set i = 1 %}}{inner}"
