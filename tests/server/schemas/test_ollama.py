"""server/schemas/ollama_api/: calls without ids, and the results that answer them."""

from typing import Any

import pytest

from server.api.request_body import unknown_params
from server.errors import ApiError
from server.schemas import ChatCompletionRequest, OllamaChatRequest, OllamaGenerateRequest, validate

HELLO = {"role": "user", "content": "Hello"}


def call(name: str, **more: Any) -> dict[str, Any]:
    return {"function": {"name": name, "arguments": {"name": name}}, **more}


def result(text: str, **more: Any) -> dict[str, Any]:
    return {"role": "tool", "content": text, **more}


def answered(calls: list[dict[str, Any]], results: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the function that each result answers, by the result's text."""
    messages = [HELLO, {"role": "assistant", "tool_calls": calls}, *results]
    _, caller, *translated = validate(OllamaChatRequest, {"messages": messages}).chat_body()["messages"]
    names = {one["id"]: one["function"]["name"] for one in caller["tool_calls"]}
    assert len(names) == len(calls)
    return {one["content"]: names.get(one["tool_call_id"]) for one in translated}


@pytest.mark.parametrize(
    ("calls", "results", "expected"),
    [
        ([call("f"), call("g")], [result("1"), result("2")], {"1": "f", "2": "g"}),
        (
            [call("f"), call("g")],
            [result("1", tool_name="g"), result("2", tool_name="f")],
            {"1": "g", "2": "f"},
        ),
        ([call("f"), call("f"), call("g")], [result("1", tool_name="g"), result("2"), result("3")], {
            "1": "g", "2": "f", "3": "f",
        }),
        ([call("f", id="a"), call("g", id="b")], [result("1", tool_call_id="b"), result("2")], {"1": "g", "2": "f"}),
        ([call("f")], [result("1", tool_name="other")], {"1": "f"}),
    ],
)  # fmt: skip
def test_a_result_answers_the_call_that_it_names_or_the_first_open_one(
    calls: list[dict[str, Any]], results: list[dict[str, Any]], expected: dict[str, str | None]
) -> None:
    assert answered(calls, results) == expected


def test_whole_numbers_may_be_decimals_and_empty_stop_texts_are_none() -> None:
    options = {"num_predict": 3.0, "top_k": 40.0, "seed": 42.0}
    body = validate(OllamaGenerateRequest, {"prompt": "a", "options": options}).chat_body()
    numbers = [body[name] for name in ("max_tokens", "top_k", "seed")]
    assert numbers == [3, 40, 42] and {type(number) for number in numbers} == {int}
    for not_whole in ({"top_k": 40.5}, {"seed": 1e20}, {"num_predict": 2.0**53 + 2}):
        with pytest.raises(ApiError, match="expected an integer"):
            validate(OllamaGenerateRequest, {"prompt": "a", "options": not_whole})
    for stop, texts in (("", []), ([""], []), (["", "x"], ["x"])):
        assert validate(OllamaGenerateRequest, {"prompt": "a", "options": {"stop": stop}}).chat_body()["stop"] == texts


def test_a_share_of_zero_is_the_likeliest_token() -> None:
    options = {"top_p": 0, "top_k": 40}
    body = validate(OllamaGenerateRequest, {"prompt": "a", "options": options}).chat_body()
    assert (body["top_p"], body["top_k"]) == (1.0, 1)


def test_a_result_without_a_call_is_refused() -> None:
    body = {"messages": [HELLO, {"role": "assistant", "tool_calls": [call("f")]}, result("1"), result("2")]}
    with pytest.raises(ApiError, match=r"'messages\[3\]' is a result"):
        validate(OllamaChatRequest, body).chat_body()


def test_the_place_and_type_of_a_call_are_known_and_left_out() -> None:
    """They are in replies, which clients send back."""
    body: dict[str, Any] = {"messages": [HELLO, {"role": "assistant", "tool_calls": [call("f", type="function")]}]}
    body["messages"][1]["tool_calls"][0]["function"]["index"] = 0
    request = validate(OllamaChatRequest, body)
    assert unknown_params(request, body) == []
    [translated] = request.chat_body()["messages"][1]["tool_calls"]
    assert translated["function"] == {"name": "f", "arguments": '{"name":"f"}'}


def test_no_call_with_the_id_of_another_is_lost() -> None:
    messages = [HELLO, {"role": "assistant", "tool_calls": [call("f", id="a"), call("g", id="a")]}]
    body = validate(OllamaChatRequest, {"messages": messages}).chat_body()
    assert [one["function"]["name"] for one in body["messages"][1]["tool_calls"]] == ["f", "g"]
    with pytest.raises(ApiError, match="have the same id"):
        validate(ChatCompletionRequest, body)


def test_options_are_fields_of_chat_and_absent_ones_are_not_sent() -> None:
    options = {"num_predict": 3, "repeat_penalty": 1.1, "stop": "x", "num_ctx": 9, "seed": 0}
    body = validate(OllamaGenerateRequest, {"prompt": "a", "options": options, "temperature": 0.5}).chat_body()
    assert body == {
        "stream": True,
        "temperature": 0.5,
        "max_tokens": 3,
        "repetition_penalty": 1.1,
        "stop": ["x"],
        "seed": 0,
        "messages": [{"role": "user", "content": "a"}],
    }
