"""prompt_logprobs of completions and chat: vLLM's format, with the same values as an echoed prompt has."""

from collections.abc import Iterable
from typing import Any

import orjson
import pytest

from engine.types import TokenLogprobs
from server.api.formats.prompt_logprobs import prompt_logprobs
from server.api.formats.sliced_logprobs import VALUES_PER_TURN
from tests.support.servers.fake_engine import FakeEngine
from tests.support.servers.serving import MODEL, client_of, saying, state_around

pytestmark = pytest.mark.anyio

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"


class Table:
    """Texts of tokens: their ids."""

    def token_bytes(self, token_id: int) -> bytes:
        return str(token_id).encode()

    def shown_texts(self, token_ids: Iterable[int]) -> list[str]:
        return list(map(str, token_ids))

    def byte_values(self, token_ids: Iterable[int]) -> list[list[int]]:
        return [list(str(token_id).encode()) for token_id in token_ids]


async def post(path: str, **fields: Any) -> dict[str, Any]:
    start = {"prompt": "one two"} if path == COMPLETIONS else {"messages": [{"role": "user", "content": "Hello"}]}
    async with client_of(state_around(FakeEngine(saying("a")))) as client:
        reply = await client.post(path, json={"model": MODEL, **start, **fields})
    body: dict[str, Any] = reply.json()
    assert reply.status_code == 200, body
    return body


async def test_a_token_has_the_likeliest_ones_and_itself_with_ranks() -> None:
    entries = [TokenLogprobs(7, -3.0, [1, 2, 7], [-0.5, -1.0, -3.0]), TokenLogprobs(9, -9.0, [1, 2, 3], [-1, -2, -3])]

    async def no_turn() -> None:
        pytest.fail("a short list takes one turn")

    first, second, third = orjson.loads(orjson.dumps(await prompt_logprobs(entries, 1, Table(), no_turn)))
    assert first is None
    assert second == {
        "1": {"logprob": -0.5, "rank": 1, "decoded_token": "1"},
        "7": {"logprob": -3.0, "rank": 3, "decoded_token": "7"},
    }
    assert third["9"] == {"logprob": -9.0, "rank": None, "decoded_token": "9"}


async def test_a_long_list_is_rendered_in_several_turns() -> None:
    turns = 0

    async def count() -> None:
        nonlocal turns
        turns += 1

    entries = [TokenLogprobs(1, -1.0, [], [])] * (3 * VALUES_PER_TURN)
    assert len(orjson.loads(orjson.dumps(await prompt_logprobs(entries, 0, Table(), count)))) == len(entries) + 1
    assert turns == 2


async def test_the_values_are_those_of_an_echoed_prompt() -> None:
    fields = {"logprobs": 2, "echo": True, "prompt_logprobs": 2, "return_token_ids": True}
    [choice] = (await post(COMPLETIONS, **fields))["choices"]
    ids = choice["prompt_token_ids"]
    listed = [entry and entry[str(i)]["logprob"] for i, entry in zip(ids, choice["prompt_logprobs"], strict=True)]
    assert listed == choice["logprobs"]["token_logprobs"][: len(ids)]


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
async def test_they_are_there_if_the_first_tokens_add_no_text(path: str) -> None:
    """The answer "a" may be the beginning of the stop string."""
    plain, held = await post(path, prompt_logprobs=1), await post(path, prompt_logprobs=1, stop=["ab", " ab"])
    found = [
        body["prompt_logprobs"] if path == CHAT else body["choices"][0]["prompt_logprobs"] for body in (plain, held)
    ]
    assert found[0] == found[1] and len(found[0]) > 1


async def test_other_logprobs_keep_their_own_number() -> None:
    body = await post(CHAT, logprobs=True, top_logprobs=1, prompt_logprobs=3)
    assert [len(entry["top_logprobs"]) for entry in body["choices"][0]["logprobs"]["content"]] == [1, 1]
    assert {len(entry) for entry in body["prompt_logprobs"][1:]} == {4}
    without = await post(CHAT, prompt_logprobs=0)
    assert without["choices"][0]["logprobs"] is None
    assert {len(entry) for entry in without["prompt_logprobs"][1:]} == {1}
    several = (await post(COMPLETIONS, prompt=["a", "b c"], logprobs=1, prompt_logprobs=3))["choices"]
    assert [len(choice["logprobs"]["top_logprobs"][0]) for choice in several] == [2, 2]
    assert [len(choice["prompt_logprobs"]) for choice in several] == [2, 3]


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
async def test_they_cannot_be_streamed(path: str) -> None:
    start = {"prompt": "a", "messages": [{"role": "user", "content": "a"}]}
    async with client_of(state_around(FakeEngine(saying("a")))) as client:
        reply = await client.post(path, json={"model": MODEL, **start, "stream": True, "prompt_logprobs": 1})
    assert (reply.status_code, reply.json()["error"]["param"]) == (400, "prompt_logprobs")
