"""server/api/formats/completion.py: chunks and full choices of several prompts."""

from server.api.formats.completion import CompletionFormat
from server.generation.choice import Delta
from server.generation.prompt import Prompt
from server.schemas import CompletionRequest
from tests.support.requests import PROMPT
from tests.support.servers.serving import tokenizer

PROMPTS = [Prompt([1], is_continued=True), Prompt([2], is_continued=True)]


def a_format(**fields: object) -> CompletionFormat:
    return CompletionFormat(CompletionRequest.model_validate(PROMPT | fields), PROMPTS, tokenizer())


def test_a_first_delta_without_text_makes_no_chunk() -> None:
    assert a_format().chunks(Delta(0, is_first=True)) == []


def test_text_and_finish_reason_are_two_chunks() -> None:
    chunks = a_format().chunks(Delta(0, text="a", finish_reason="stop"))
    assert [(choice["text"], choice["finish_reason"]) for choice, _ in chunks] == [("a", None), ("", "stop")]


def test_each_choice_has_the_ids_of_its_own_prompt_once() -> None:
    reply_format = a_format(return_token_ids=True, n=2)
    choices = [reply_format.full(Delta(index, text="a")) for index in (0, 1, 2, 3, 3)]
    assert [choice.get("prompt_token_ids") for choice in choices] == [[1], [1], [2], [2], None]
