"""A body costs the event loop little, however much there is to parse in it."""

import threading

import pytest

from server.api import request_body
from server.strict_json import JsonValue, parse_object
from tests.support.fake_engine import FakeEngine
from tests.support.serving import MODEL, client_of, saying, state_around

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize(("num_ids", "is_aside"), [(1, False), (300_000, True)])
async def test_a_large_body_is_parsed_beside_the_event_loop(
    monkeypatch: pytest.MonkeyPatch, num_ids: int, is_aside: bool
) -> None:
    """300,000 small integers fit a megabyte and take Python a quarter of a second."""
    parsers: list[threading.Thread] = []

    def noted(body: bytes) -> dict[str, JsonValue]:
        parsers.append(threading.current_thread())
        return parse_object(body)

    monkeypatch.setattr(request_body, "parse_object", noted)
    async with client_of(state_around(FakeEngine(saying("x")))) as client:
        body = {"model": MODEL, "prompt": "a", "allowed_token_ids": [5] * num_ids}
        assert (await client.post("/v1/completions", json=body)).status_code == 200
    [parser] = parsers
    assert (parser is not threading.current_thread()) == is_aside


async def test_an_error_in_a_large_body_is_the_same_400() -> None:
    async with client_of(state_around(FakeEngine(saying("x")))) as client:
        reply = await client.post("/v1/completions", json={"model": MODEL, "prompt": "a", "stop": ["a"] * 200_000})
    assert (reply.status_code, reply.json()["error"]["code"]) == (400, "array_above_max_length")
