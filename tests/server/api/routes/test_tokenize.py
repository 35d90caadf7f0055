"""POST /tokenize, POST /detokenize and GET /tokenizer_info."""

import threading
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import msgspec
import orjson
import pytest

from server.api.routes import tokenize as route
from server.api.routes.tokenize import IDS_PER_TURN
from server.fairness.event_loop import INLINE_CHARS
from server.tokenizer.detokenizer import Detokenizer
from tests.support.servers.fake_engine import READY, FakeEngine
from tests.support.servers.serving import check_error, client_of, saying, state_around, tokenizer

pytestmark = pytest.mark.anyio


async def test_tokenize_and_detokenize_are_inverse() -> None:
    state = state_around(FakeEngine(saying("a")))
    assert state.texts is not None
    async with client_of(state) as client:
        body = (await client.post("/tokenize", json={"prompt": "Grüße!"})).json()
        assert body["tokens"] == tokenizer().encode("Grüße!")
        assert (body["count"], body["max_model_len"]) == (len(body["tokens"]), 256)
        plain = (await client.post("/tokenize", json={"prompt": "Grüße!", "add_special_tokens": False})).json()
        assert plain["tokens"] == body["tokens"][1:]
        assert (await client.post("/detokenize", json={"tokens": plain["tokens"]})).json() == {"prompt": "Grüße!"}
        chat = (await client.post("/tokenize", json={"messages": [{"role": "user", "content": "Hello"}]})).json()
        assert chat["tokens"] == [1, 733, 16289, 28793, 22557, 733, 28748, 16289, 28793]
        response = await client.post("/detokenize", json={"tokens": [32000]})
        check_error(response, 400, "integer_above_max_value", "tokens")
        info = (await client.get("/tokenizer_info")).json()
        assert (info["bos_token"], info["eos_token"], info["chat_template"]) == (
            "<s>",
            "</s>",
            state.texts.chat_template.source,
        )


async def test_many_ids_become_text_in_slices_each_in_a_turn_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    state = state_around(FakeEngine(saying("a")))
    work: list[Any] = []
    push, check_ids, next_turn = Detokenizer.push, route.check_ids, state.turns.next

    def noted_push(self: Detokenizer, ids: Sequence[int]) -> str:
        work.append(len(ids))
        return push(self, ids)

    def noted_check(ids: Sequence[int], *arguments: Any) -> None:
        work.append(len(ids))
        check_ids(ids, *arguments)

    async def noted_turn(tenant: int) -> None:
        work.append("turn")
        await next_turn(tenant)

    monkeypatch.setattr(Detokenizer, "push", noted_push)
    monkeypatch.setattr(route, "check_ids", noted_check)
    monkeypatch.setattr(state.turns, "next", noted_turn)
    ids = [22557] * (2 * IDS_PER_TURN + 1)
    async with client_of(state) as client:
        text = (await client.post("/detokenize", json={"tokens": ids})).json()["prompt"]
    assert text == " ".join(["Hello"] * len(ids))
    whole = ["turn", IDS_PER_TURN, IDS_PER_TURN]
    assert work == [*whole, *whole, "turn", 1, 1]


async def test_an_id_outside_the_vocabulary_is_found_in_any_slice() -> None:
    async with client_of(state_around(FakeEngine(saying("a")))) as client:
        response = await client.post("/detokenize", json={"tokens": [5] * (2 * IDS_PER_TURN) + [32000]})
        check_error(response, 400, "integer_above_max_value", "tokens")


async def test_a_long_conversation_is_checked_in_a_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    threads: list[int] = []
    check = route.check_prompt_chars

    def noted(*arguments: Any) -> None:
        threads.append(threading.get_ident())
        check(*arguments)

    monkeypatch.setattr(route, "check_prompt_chars", noted)
    async with client_of(state_around(FakeEngine(saying("a")))) as client:
        for content, status in (("Hello", 200), ("Hello " * 10_000, 400)):
            response = await client.post("/tokenize", json={"messages": [{"role": "user", "content": content}]})
            assert response.status_code == status
    own = threading.get_ident()
    assert [thread == own for thread in threads] == [True, False]


async def test_long_replies_are_rendered_in_a_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    threads: list[int] = []

    def noted(body: object) -> bytes:
        threads.append(threading.get_ident())
        return orjson.dumps(body)

    monkeypatch.setattr(route, "orjson", SimpleNamespace(dumps=noted))
    engine = FakeEngine(saying("a"))
    engine.ready = msgspec.structs.replace(READY, max_model_len=1 << 20, max_prompt_tokens=1 << 20)
    async with client_of(state_around(engine)) as client:
        for count in (1, INLINE_CHARS):
            text = " ".join(["Hello"] * count)
            body = (await client.post("/tokenize", json={"prompt": text, "return_token_strs": True})).json()
            assert body["tokens"] == [1, *[22557] * count] and body["count"] == count + 1
            assert body["token_strs"] == ["<s>", *[" Hello"] * count]
            tokens = {"tokens": [*body["tokens"][1:], 22557]}
            assert (await client.post("/detokenize", json=tokens)).json() == {"prompt": text + " Hello"}
    own = threading.get_ident()
    assert [thread == own for thread in threads] == [True, True, False, False]
