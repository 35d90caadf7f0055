"""server/generation/prompt.py: truncation, and the limit on generated tokens."""

import msgspec
import pytest

from server.errors import ApiError
from server.generation.prompt import completion_limit, truncated
from server.schemas import ChatCompletionRequest, CompletionRequest
from server.schemas.generation import GenerationRequest
from tests.support.requests import CHAT, PROMPT
from tests.support.servers.fake_engine import READY

SMALL = msgspec.structs.replace(READY, max_model_len=20, max_prompt_tokens=18)


def completion(**fields: object) -> CompletionRequest:
    return CompletionRequest.model_validate(PROMPT | fields)


def chat(**fields: object) -> ChatCompletionRequest:
    return ChatCompletionRequest.model_validate(CHAT | fields)


@pytest.mark.parametrize(
    ("request_", "num_prompt", "expected"),
    [
        (completion(), 2, 16),
        (completion(), 10, 10),  # the default gives way
        (completion(max_tokens=10), 10, 10),
        (chat(), 10, 10),
        (chat(max_tokens=3), 10, 3),
        (chat(max_completion_tokens=4), 10, 4),
        (completion(max_tokens=-1), 2, 18),  # as llama.cpp's clients say that nothing limits the completion
        (chat(max_tokens=-1), 10, 10),
        (chat(max_completion_tokens=-1), 10, 10),
        (chat(max_tokens=4, max_completion_tokens=-1), 10, 4),
    ],
)
def test_the_limit_is_the_clients_or_the_room_after_the_prompt(
    request_: GenerationRequest, num_prompt: int, expected: int
) -> None:
    assert completion_limit(request_, num_prompt, SMALL) == expected


@pytest.mark.parametrize(
    ("request_", "num_prompt", "param"),
    [
        (completion(max_tokens=11), 10, "max_tokens"),
        (chat(max_tokens=11), 10, "max_tokens"),
        (chat(max_completion_tokens=11), 10, "max_completion_tokens"),
        (completion(), 19, "prompt"),
    ],
)
def test_a_limit_or_a_prompt_that_does_not_fit_is_refused(
    request_: GenerationRequest, num_prompt: int, param: str
) -> None:
    with pytest.raises(ApiError) as caught:
        completion_limit(request_, num_prompt, SMALL)
    assert (caught.value.code, caught.value.param) == ("context_length_exceeded", param)
    assert ("to at most 10" in caught.value.message) == (num_prompt == 10)


@pytest.mark.parametrize(("request_", "num_prompt"), [(completion(max_tokens=11), 10), (completion(), 19)])
def test_every_refusal_names_the_same_context_length(request_: GenerationRequest, num_prompt: int) -> None:
    with pytest.raises(ApiError, match="maximum context length is 20 tokens") as caught:
        completion_limit(request_, num_prompt, SMALL)
    assert ("your prompt has at least 19 tokens. Shorten it to at most 18" in caught.value.message) == (num_prompt > 18)


@pytest.mark.parametrize(("keep", "expected"), [(None, [1, 2, 3]), (2, [2, 3]), (3, [1, 2, 3]), (9, [1, 2, 3])])
def test_truncation_keeps_the_last_tokens(keep: int | None, expected: list[int]) -> None:
    assert truncated([1, 2, 3], completion(truncate_prompt_tokens=keep), SMALL) == expected
    assert truncated([1, 2, 3], completion(truncate_prompt_tokens=keep, truncation_side="left"), SMALL) == expected


@pytest.mark.parametrize(("keep", "expected"), [(None, [1, 2, 3]), (2, [1, 2]), (3, [1, 2, 3]), (9, [1, 2, 3])])
def test_truncation_at_the_right_keeps_the_first_tokens(keep: int | None, expected: list[int]) -> None:
    assert truncated([1, 2, 3], completion(truncate_prompt_tokens=keep, truncation_side="right"), SMALL) == expected


@pytest.mark.parametrize(
    ("request_", "num_kept"),
    [
        (completion(), 4),  # 16 tokens are the default limit
        (completion(max_tokens=5), 15),
        (completion(max_tokens=-1), 18),
        (completion(max_tokens=0, echo=True), 18),
        (completion(max_tokens=99), 1),
        (chat(), 18),
    ],
)
def test_truncation_to_the_context_leaves_room_for_the_completion(request_: GenerationRequest, num_kept: int) -> None:
    whole = request_.model_copy(update={"truncate_prompt_tokens": -1})
    assert truncated(list(range(40)), whole, SMALL) == list(range(40))[-num_kept:]


def test_truncation_to_the_context_may_be_sent() -> None:
    assert completion(truncate_prompt_tokens=-1).truncate_prompt_tokens == -1
