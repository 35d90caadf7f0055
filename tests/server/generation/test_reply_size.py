"""server/generation/reply_size.py: how many tokens fit into a reply that lists values for each."""

from typing import Any

import msgspec
import pytest

from server.errors import ApiError
from server.generation.reply_size import MAX_REPLY_VALUES, limit_reply
from server.schemas import ChatCompletionRequest, CompletionRequest
from server.schemas.generation import GenerationRequest
from server.schemas.validation import validate
from tests.support.servers.fake_engine import READY

LAYERS = msgspec.structs.replace(READY, num_layers=32)  # 64 expert ids per position


def completion(**fields: Any) -> GenerationRequest:
    return validate(CompletionRequest, {"model": "m", "prompt": "x", **fields})


def chat(**fields: Any) -> GenerationRequest:
    return validate(ChatCompletionRequest, {"model": "m", "messages": [{"role": "user", "content": "x"}], **fields})


@pytest.mark.parametrize(
    ("request_", "per_position", "prompt_length"),
    [
        (completion(logprobs=20, n=8, max_tokens=9), 21, 0),
        (completion(logprobs=0, max_tokens=9), 1, 0),
        (completion(logprobs=3, n=2, echo=True, max_tokens=9), 4, 100),
        (chat(logprobs=True, top_logprobs=20, n=4, max_tokens=9), 21, 0),
        (chat(expert_routing=True, max_completion_tokens=9), 64, 0),
        (chat(expert_routing=True, logprobs=True, experts_per_token=1, max_tokens=9), 33, 0),
        (chat(gate_logits=True, max_tokens=9), 64 + 32 * 8 * 16, 0),
        (completion(gate_logits=True, echo=True, max_tokens=9), 64 + 32 * 8 * 16, 20),
    ],
)
def test_values_of_all_positions_choices_and_prompts_count(
    request_: GenerationRequest, per_position: int, prompt_length: int
) -> None:
    num_prompts = 3
    fits = MAX_REPLY_VALUES // per_position // request_.n - num_prompts * prompt_length
    lengths = [prompt_length or 5] * num_prompts
    limits = [fits - 4, 2, 2]
    assert limit_reply(request_, LAYERS, lengths, limits) == limits
    with pytest.raises(ApiError) as caught:
        limit_reply(request_, LAYERS, lengths, [fits - 3, 2, 2])
    assert caught.value.code == "reply_too_large"
    assert f"{MAX_REPLY_VALUES // per_position} tokens" in caught.value.message


def test_a_limit_that_the_client_did_not_set_is_lowered() -> None:
    request = chat(logprobs=True, top_logprobs=20, n=2)
    assert limit_reply(request, LAYERS, [7], [10**6]) == [MAX_REPLY_VALUES // 21 // 2]
    assert limit_reply(request, LAYERS, [7], [50]) == [50]


def test_a_prompt_that_alone_is_too_large_is_refused_whatever_the_limit() -> None:
    request = completion(logprobs=20, echo=True)  # 16 tokens by default
    with pytest.raises(ApiError, match="too large"):
        limit_reply(request, LAYERS, [MAX_REPLY_VALUES // 21], [16])


def test_replies_of_text_and_ids_are_not_limited() -> None:
    assert limit_reply(completion(return_token_ids=True, max_tokens=9), LAYERS, [5], [10**7]) == [10**7]


def test_a_server_that_is_short_of_memory_has_smaller_replies() -> None:
    asked, default = chat(logprobs=True, top_logprobs=20, max_tokens=50), chat(logprobs=True, top_logprobs=20)
    assert limit_reply(asked, LAYERS, [7], [50], max_values=50 * 21) == [50]
    with pytest.raises(ApiError, match="at most 49 tokens"):
        limit_reply(asked, LAYERS, [7], [50], max_values=50 * 21 - 1)
    assert limit_reply(default, LAYERS, [7], [10**6], max_values=50 * 21) == [50]
