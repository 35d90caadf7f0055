"""server/api/chat_turn.py: repaired conversations, and those that the server or the template rejects."""

from dataclasses import replace

import pytest

from server.chat.template import ChatTemplate
from tests.support.servers.fake_engine import FakeEngine
from tests.support.servers.serving import MODEL, client_of, saying, state_around, tokenizer

pytestmark = pytest.mark.anyio

URL = "/v1/chat/completions"

BROKEN = [("user", "Hel"), ("system", "Be brief."), ("user", "lo")]

VALID = [("system", "Be brief."), ("user", "Hel\n\nlo")]


def conversation(turns: list[tuple[str, str]], **fields: object) -> dict[str, object]:
    return {"model": MODEL, "messages": [{"role": role, "content": text} for role, text in turns], **fields}


@pytest.mark.parametrize("streamed", [False, True])
async def test_repairs_are_named_and_give_the_prompt_of_the_valid_conversation(streamed: bool) -> None:
    engine = FakeEngine(saying("fine"))
    async with client_of(state_around(engine)) as client:
        repaired = await client.post(URL, json=conversation(BROKEN, stream=streamed, temprature=1))
        valid = await client.post(URL, json=conversation(VALID, stream=streamed))
    assert (repaired.status_code, valid.status_code) == (200, 200)
    assert repaired.headers["x-smoe-repaired"] == "moved-system, joined-turns"
    assert repaired.headers["x-smoe-ignored-params"] == "temprature"
    assert "x-smoe-repaired" not in valid.headers
    first, second = (request.prompt_token_ids for request in engine.submitted)
    assert first == second


async def test_tokenize_repairs_as_the_chat_does() -> None:
    async with client_of(state_around(FakeEngine(saying("fine")))) as client:
        repaired, valid = [await client.post("/tokenize", json=conversation(turns)) for turns in (BROKEN, VALID)]
    assert repaired.json() == valid.json()
    assert repaired.headers["x-smoe-repaired"] == "moved-system, joined-turns"
    assert "x-smoe-repaired" not in valid.headers


@pytest.mark.parametrize(("path", "streamed"), [(URL, False), (URL, True), ("/tokenize", None)])
async def test_strict_roles_reject_only_conversations_that_need_repair(path: str, streamed: bool | None) -> None:
    engine = FakeEngine(saying("fine"))
    state = replace(state_around(engine), strict_roles=True)
    stream = {} if streamed is None else {"stream": streamed}
    async with client_of(state) as client:
        refused = await client.post(path, json=conversation(BROKEN, **stream))
        valid = await client.post(path, json=conversation(VALID, **stream))
    error = refused.json()["error"]
    assert (refused.status_code, error["param"], error["code"]) == (400, "messages", "invalid_value")
    assert error["message"].endswith("moved-system, joined-turns.")
    assert valid.status_code == 200
    assert len(engine.submitted) == (0 if streamed is None else 1)


async def test_a_template_that_rejects_a_repaired_conversation_is_a_400() -> None:
    engine = FakeEngine(saying("fine"))
    state = state_around(engine)
    assert state.texts is not None
    haiku = ChatTemplate("{{ raise_exception('only haiku, please') }}", tokenizer())
    async with client_of(replace(state, texts=replace(state.texts, chat_template=haiku))) as client:
        response = await client.post(URL, json=conversation(BROKEN))
    assert response.status_code == 400
    assert response.json()["error"]["message"] == "only haiku, please"
    assert not engine.submitted


async def test_a_limit_that_does_not_fit_is_reported_before_an_invalid_grammar() -> None:
    faults = {"structured_outputs": {"regex": "("}, "max_tokens": 10**6}
    async with client_of(state_around(FakeEngine(saying("fine")))) as client:
        both = await client.post(URL, json=conversation(VALID, **faults))
        grammar = await client.post(URL, json=conversation(VALID, structured_outputs=faults["structured_outputs"]))
    assert both.json()["error"]["code"] == "context_length_exceeded"
    assert grammar.json()["error"]["param"] == "structured_outputs.regex"
