"""Grammars of a few bytes that would take minutes or gigabytes, in the real sandbox, past the checks in front of it.

Those checks (server/structured_output/multiples.py and others) refuse each of these schemas by a count. Here they are
left out, so that what they miss is bounded too.
"""

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from server.errors import ApiError
from server.sandbox.job import Limits
from server.sandbox.pool import SandboxPool
from server.schemas import CompletionRequest, validate
from server.structured_output.constraints import JSON_OPTIONS, Constraint
from server.structured_output.grammar_checker import GrammarChecker
from tests.support.servers.serving import MODEL, tokenizer

pytestmark = pytest.mark.anyio

REQUEST = validate(CompletionRequest, {"model": MODEL, "prompt": "x"})


def schema(**value: Any) -> str:
    return f"start: %json {json.dumps({**value, 'x-guidance': JSON_OPTIONS})}"


BOMBS = {
    "two multiples": schema(allOf=[{"type": "integer", "multipleOf": n} for n in (9973, 9967)]),
    "one large multiple": 'start: %json {"type":"integer","multipleOf":10000019}',
    "many multiples": schema(
        type="object",
        properties={f"p{n}": {"type": "integer", "multipleOf": n} for n in range(9900, 9980)},
        required=[f"p{n}" for n in range(9900, 9980)],
    ),
    "a fraction": schema(type="number", multipleOf=9999.9999),
}


@pytest.fixture
async def checker(anyio_backend: str) -> AsyncIterator[GrammarChecker]:
    pool = SandboxPool(num_workers=2)
    await pool.start()
    yield GrammarChecker(tokenizer(), pool, Limits(cpu_s=0.2))
    pool.close()


async def test_a_bomb_is_refused_within_the_sandbox_limits_and_harmless_grammars_pass_after_it(
    checker: GrammarChecker,
) -> None:
    for name, bomb in BOMBS.items():
        with pytest.raises(ApiError) as refused:
            await checker.compile(REQUEST, [Constraint(bomb, "a.param")])
        assert refused.value.status == 400, name
        assert "more work than this server allows" in refused.value.message, name
    assert await checker.compile(REQUEST, [Constraint(schema(type="object"), "a.param")]) is not None
