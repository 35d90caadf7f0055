"""The openai client and plain HTTP requests work unchanged against a real server."""

import json

import httpx
import openai
import pytest

from tests.support.servers.running import MODEL, RunningServer


@pytest.fixture
def client(server: RunningServer) -> openai.OpenAI:
    return openai.OpenAI(base_url=server.url + "/v1", api_key="unused", max_retries=0)


def test_a_stream_concatenates_to_the_whole_completion(client: openai.OpenAI) -> None:
    ask = {"model": MODEL, "prompt": "It was a truth", "max_tokens": 30, "temperature": 0.8, "seed": 7}
    whole = client.completions.create(**ask)
    chunks = list(client.completions.create(**ask, stream=True, stream_options={"include_usage": True}))
    assert "".join(c.choices[0].text for c in chunks if c.choices) == whole.choices[0].text
    assert chunks[-1].usage == whole.usage
    assert whole.usage is not None and whole.usage.completion_tokens == 30


def test_chat_answers_and_streams_the_same(client: openai.OpenAI) -> None:
    messages = [{"role": "user", "content": "Count from 3 to 7."}]
    ask = {"model": MODEL, "messages": messages, "temperature": 0, "max_tokens": 30}
    whole = client.chat.completions.create(**ask).choices[0]
    chunks = list(client.chat.completions.create(**ask, stream=True))
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(c.choices[0].delta.content or "" for c in chunks) == whole.message.content
    assert chunks[-1].choices[0].finish_reason == whole.finish_reason == "stop"
    assert whole.message.content == "3 4 5 6 7"


def test_n_choices_differ_and_each_equals_its_own_seeded_run(client: openai.OpenAI) -> None:
    three = client.completions.create(model=MODEL, prompt="He said", n=3, seed=1, max_tokens=16)
    assert len({choice.text for choice in three.choices}) == 3
    again = client.completions.create(model=MODEL, prompt="He said", n=3, seed=1, max_tokens=16)
    assert [c.text for c in three.choices] == [c.text for c in again.choices]


def test_echo_scores_the_prompt(client: openai.OpenAI) -> None:
    scored = client.completions.create(
        model=MODEL, prompt="And God said, Let there be light", max_tokens=0, echo=True, logprobs=1
    ).choices[0]
    assert scored.text == "And God said, Let there be light"
    assert scored.logprobs is not None and scored.logprobs.token_logprobs is not None
    assert scored.logprobs.token_logprobs[0] is None
    assert len(scored.logprobs.token_logprobs) == len(scored.logprobs.tokens or [])
    assert all(value < 0 for value in scored.logprobs.token_logprobs[1:])


def test_a_stop_string_ends_the_text_before_it(client: openai.OpenAI, server: RunningServer) -> None:
    ask = {"model": MODEL, "prompt": "1:1 In the beginning", "max_tokens": 60, "temperature": 0}
    text = client.completions.create(**ask).choices[0].text
    stop = text[20:26]
    choice = client.completions.create(**ask, stop=stop).choices[0]
    assert choice.text == text[: text.index(stop)]
    assert choice.finish_reason == "stop"
    server.settled_metrics()


def test_errors_are_raised_as_the_clients_own_classes(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as missing:
        client.completions.create(model="gpt-4", prompt="x")
    assert missing.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as too_long:
        client.completions.create(model=MODEL, prompt=[5] * 3000)
    assert too_long.value.code == "context_length_exceeded"
    assert "maximum context length is 2048 tokens" in str(too_long.value)


def test_a_repeated_prompt_reports_its_cached_tokens(client: openai.OpenAI) -> None:
    prompt = [1, *range(300, 400)]
    for expected in (0, 96):
        usage = client.completions.create(model=MODEL, prompt=prompt, max_tokens=1).usage
        assert usage is not None and usage.prompt_tokens_details is not None
        assert usage.prompt_tokens_details.cached_tokens == expected


def test_raw_events_are_lines_of_json_and_end_with_done(server: RunningServer) -> None:
    body = {"model": MODEL, "prompt": "Hello", "max_tokens": 4, "stream": True}
    with httpx.stream("POST", server.url + "/v1/completions", json=body, timeout=60) as reply:
        assert reply.headers["content-type"].startswith("text/event-stream")
        assert reply.headers["x-request-id"]
        lines = [line for line in reply.iter_lines() if line]
    assert lines[-1] == "data: [DONE]"
    ids = {json.loads(line.removeprefix("data: "))["id"] for line in lines[:-1]}
    assert len(ids) == 1


def test_models_and_tokenizer_endpoints_agree(client: openai.OpenAI, server: RunningServer) -> None:
    [model] = client.models.list().data
    assert model.id == MODEL and client.models.retrieve(MODEL).id == MODEL
    tokens = server.post("/tokenize", {"model": MODEL, "prompt": "Grüße, 世界"}).json()
    assert tokens["count"] == len(tokens["tokens"]) and tokens["max_model_len"] == 2048
    text = server.post("/detokenize", {"model": MODEL, "tokens": tokens["tokens"]}).json()["prompt"]
    assert text.removeprefix("<s>").strip() == "Grüße, 世界"


@pytest.mark.parametrize("streamed", [False, True])
def test_a_conversation_out_of_order_is_answered_as_the_one_in_order(client: openai.OpenAI, streamed: bool) -> None:
    system = {"role": "system", "content": "Be brief."}
    count, ask = {"role": "user", "content": "Count from"}, {"role": "user", "content": "3 to 7."}
    both = {"role": "user", "content": "Count from\n\n3 to 7."}
    replies = [
        client.chat.completions.with_raw_response.create(
            model=MODEL, messages=messages, temperature=0, max_tokens=20, stream=streamed
        )
        for messages in ([count, system, ask], [system, both])
    ]
    assert [reply.headers.get("x-smoe-repaired") for reply in replies] == ["moved-system, joined-turns", None]
    texts = [
        "".join(chunk.choices[0].delta.content or "" for chunk in reply.parse())
        if streamed
        else reply.parse().choices[0].message.content
        for reply in replies
    ]
    assert texts[0] == texts[1] != ""
