"""server/api/formats/reply.py: chunks made from pieces equal chunks rendered in full."""

from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.api.formats.chat import ChatFormat
from server.api.formats.completion import CompletionFormat
from server.api.formats.json_pieces import joined
from server.api.formats.reply import INLINE_VALUES, Envelope, ReplyFormat, TextChunks, chunks_in_turns
from server.api.formats.sliced_logprobs import VALUES_PER_TURN
from server.generation.choice import Delta, Position
from server.generation.prompt import Prompt
from server.schemas import ChatCompletionRequest, CompletionRequest
from tests.support.servers.fake_engine import FakeEngine, entry
from tests.support.servers.serving import MODEL, client_of, saying, state_around, tokenizer

CHAT = {"model": MODEL, "messages": [{"role": "user", "content": "a"}]}
COMPLETION = {"model": MODEL, "prompt": "a"}
FIELDS = {"id": "x-1", "created": 1, "model": 'with "text":"" in it', "seed": 3}


def reply_formats() -> list[ReplyFormat]:
    prompt = Prompt([1], is_continued=False)
    chat = ChatFormat(ChatCompletionRequest.model_validate(CHAT), prompt, tokenizer())
    completion = CompletionFormat(CompletionRequest.model_validate(COMPLETION), [prompt], tokenizer())
    return [chat, completion]


@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1), st.integers(0, 7))
def test_a_chunk_made_of_pieces_has_the_bytes_of_one_rendered_in_full(text: str, index: int) -> None:
    more = {"usage": None}
    for reply_format in reply_formats():
        envelope = Envelope(FIELDS)
        chunks = TextChunks(reply_format, envelope, more)
        for _ in range(2):  # the first cuts the pieces, the second finds them
            delta = Delta(index, text=text)
            [(choice, extra)] = reply_format.chunks(delta)
            assert delta.is_text_only
            assert chunks.chunk(delta) == envelope.chunk([choice], {**extra, **more})
            assert orjson.loads(chunks.chunk(delta))["choices"][0]["index"] == index


@pytest.mark.parametrize("extra", [{"return_token_ids": True}, {"logprobs": True}])
def test_a_chat_with_more_than_text_is_never_made_of_pieces(extra: dict[str, object]) -> None:
    request = ChatCompletionRequest.model_validate(CHAT | extra)
    assert not ChatFormat(request, Prompt([1], is_continued=False), tokenizer()).text_only_stream


@pytest.mark.parametrize("extra", [{"return_token_ids": True}, {"logprobs": 0}])
def test_a_completion_with_more_than_text_is_never_made_of_pieces(extra: dict[str, object]) -> None:
    request = CompletionRequest.model_validate(COMPLETION | extra)
    assert not CompletionFormat(request, [], tokenizer()).text_only_stream


def test_first_and_last_deltas_are_more_than_text() -> None:
    assert not Delta(0, text="a", is_first=True).is_text_only
    assert not Delta(0, text="a", finish_reason="stop").is_text_only
    assert not Delta(0).is_text_only


class Turns:
    """The part of a generation that rendering needs; counts the turns, and the positions rendered before each."""

    def __init__(self, reply_format: ReplyFormat) -> None:
        self.rendered: list[list[int]] = []
        self._logprobs = reply_format.logprobs
        reply_format.logprobs = self._noted  # type: ignore[method-assign]

    async def next_turn(self) -> None:
        self.rendered.append([])

    def _noted(self, positions: Any) -> Any:
        self.rendered[-1].append(len(positions))
        return self._logprobs(positions)


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("num_deltas", "num_positions"),
    [
        (4, 1),  # a step of four choices: one turn, as a step of one choice of another stream
        (8, VALUES_PER_TURN // 21 // 2),  # what has gathered while the client did not read
        (2, VALUES_PER_TURN // 21 + 5),  # more than one turn each
    ],
)
async def test_the_log_probabilities_of_a_stream_are_rendered_in_turns(num_deltas: int, num_positions: int) -> None:
    request = CompletionRequest.model_validate({**COMPLETION, "logprobs": 20})
    reply_format = CompletionFormat(request, [Prompt([1], is_continued=False)] * num_deltas, tokenizer())
    deltas = [
        Delta(index, text="x", positions=[Position(i, i, entry(i, 20)) for i in range(num_positions)])
        for index in range(num_deltas)
    ]
    assert num_deltas * num_positions * 21 > INLINE_VALUES
    whole = [reply_format.full(delta) for delta in deltas]
    turns = Turns(reply_format)
    chunks = await chunks_in_turns(deltas, reply_format, turns)  # type: ignore[arg-type]
    assert [orjson.dumps(choice, joined) for choice, _ in chunks] == [orjson.dumps(choice) for choice in whole]
    values = [sum(rendered) * 21 for rendered in turns.rendered]
    assert sum(values) == num_deltas * num_positions * 21
    assert max(values) < VALUES_PER_TURN + 21 * min(num_positions, VALUES_PER_TURN // 21)


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("fields", "takes_turns"),
    [
        ({"stream": True}, False),
        ({"stream": True, "n": 4}, False),
        ({"stream": True, "logprobs": 20}, False),  # of one token at a time
        ({"stream": True, "logprobs": 20, "n": 4}, True),
        ({"stream": True, "gate_logits": True, "n": 24}, True),
        ({"n": 4}, False),
        ({"logprobs": 0}, False),
        ({"logprobs": 20}, True),
        ({"gate_logits": True, "n": 24}, True),
    ],
)
async def test_a_reply_with_many_numbers_takes_turns(
    monkeypatch: pytest.MonkeyPatch, fields: dict[str, Any], takes_turns: bool
) -> None:
    """One that has to render few at once, too: many replies may end in one step."""
    num_turns = 0
    state = state_around(FakeEngine(saying("a b c d")))
    next_turn = state.turns.next

    async def noted(tenant: int) -> None:
        nonlocal num_turns
        num_turns += 1
        await next_turn(tenant)

    monkeypatch.setattr(state.turns, "next", noted)
    async with client_of(state) as client:
        replied = await client.post("/v1/completions", json={**COMPLETION, "max_tokens": 4, **fields})
    assert replied.status_code == 200
    assert (num_turns > 0) == takes_turns
