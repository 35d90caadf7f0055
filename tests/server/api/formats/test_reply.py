"""server/api/formats/reply.py: chunks made from pieces equal chunks rendered in full."""

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.api.formats.chat import ChatFormat
from server.api.formats.completion import CompletionFormat
from server.api.formats.reply import Envelope, ReplyFormat, TextChunks
from server.generation.choice import Delta
from server.generation.prompt import Prompt
from server.schemas import ChatCompletionRequest, CompletionRequest
from tests.support.serving import MODEL, tokenizer

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
