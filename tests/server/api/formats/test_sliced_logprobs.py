"""Logprobs rendered in slices have the bytes of those rendered at once."""

import orjson
import pytest

from server.api.formats.chat import ChatFormat
from server.api.formats.completion import CompletionFormat
from server.api.formats.json_pieces import in_pieces, joined
from server.api.formats.reply import ReplyFormat
from server.api.formats.sliced_logprobs import VALUES_PER_TURN, sliced_logprobs
from server.generation.choice import Delta, Position
from server.generation.prompt import Prompt
from server.schemas import ChatCompletionRequest, CompletionRequest
from tests.support.servers.fake_engine import entry
from tests.support.servers.serving import MODEL, tokenizer

pytestmark = pytest.mark.anyio


def completion_format() -> ReplyFormat:
    request = CompletionRequest.model_validate({"model": MODEL, "prompt": "a", "logprobs": 20})
    return CompletionFormat(request, [Prompt([1], is_continued=False)], tokenizer())


def chat_format() -> ReplyFormat:
    body = {"model": MODEL, "messages": [{"role": "user", "content": "a"}], "logprobs": True, "top_logprobs": 20}
    return ChatFormat(ChatCompletionRequest.model_validate(body), Prompt([1], is_continued=False), tokenizer())


def positions(count: int) -> list[Position]:
    return [Position(token_id % 32000, token_id, entry(token_id % 32000, 20)) for token_id in range(count)]


@pytest.mark.parametrize("reply_format", [completion_format(), chat_format()])
async def test_slices_have_the_bytes_of_the_whole(reply_format: ReplyFormat) -> None:
    num_turns = 0

    async def next_turn() -> None:
        nonlocal num_turns
        num_turns += 1

    several = positions(1000)
    several[0] = Position(5, 0, several[0].logprobs if isinstance(reply_format, ChatFormat) else None)
    delta = Delta(0, text="x", positions=several)
    whole = orjson.dumps(reply_format.full(delta))
    delta.rendered_logprobs = await sliced_logprobs(several, reply_format.logprobs, next_turn)
    assert orjson.dumps(reply_format.full(delta), joined) == whole
    assert b"".join(in_pieces(reply_format.full(delta))) == whole
    size = VALUES_PER_TURN // 21
    assert num_turns == -(-1000 // size)


async def test_few_positions_take_no_turn() -> None:
    async def next_turn() -> None:
        raise AssertionError("took a turn")

    reply_format = completion_format()
    for count in (0, 3, VALUES_PER_TURN // 21):
        expected = reply_format.logprobs(positions(count))
        assert await sliced_logprobs(positions(count), reply_format.logprobs, next_turn) == expected
