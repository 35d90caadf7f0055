"""OpenAI's client.responses and Anthropic's client work unchanged against a real server."""

import anthropic
import openai
import pytest

from tests.support.servers.running import KEY, MODEL, RunningServer

ASK = "Count from 3 to 7."
GREEDY = {"temperature": 0}


@pytest.fixture
def client(server: RunningServer) -> openai.OpenAI:
    return openai.OpenAI(base_url=server.url + "/v1", api_key="unused", max_retries=0)


@pytest.fixture
def claude(server: RunningServer) -> anthropic.Anthropic:
    return anthropic.Anthropic(base_url=server.url, api_key="unused", max_retries=0)


def test_a_response_equals_the_chats_answer_streamed_and_unstreamed(client: openai.OpenAI) -> None:
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": ASK}]
    chat = client.chat.completions.create(model=MODEL, messages=messages, temperature=0)
    whole = client.responses.create(model=MODEL, instructions="Be brief.", input=ASK, temperature=0)
    assert whole.output_text == chat.choices[0].message.content == "3 4 5 6 7"
    assert whole.status == "completed" and whole.usage is not None and chat.usage is not None
    assert (whole.usage.input_tokens, whole.usage.output_tokens) == (
        chat.usage.prompt_tokens,
        chat.usage.completion_tokens,
    )
    with client.responses.stream(model=MODEL, instructions="Be brief.", input=ASK, temperature=0) as stream:
        text = "".join(event.delta for event in stream if event.type == "response.output_text.delta")
        final = stream.get_final_response()
    assert text == final.output_text == whole.output_text


def test_a_response_continues_from_the_items_of_the_last_one(client: openai.OpenAI) -> None:
    first = client.responses.create(model=MODEL, input=ASK, temperature=0)
    turns = [{"role": "user", "content": ASK}, *first.output, {"role": "user", "content": "Count from 1 to 3."}]
    second = client.responses.create(model=MODEL, input=turns, temperature=0)
    assert second.usage is not None and first.usage is not None
    assert second.usage.input_tokens > first.usage.input_tokens + first.usage.output_tokens


def test_a_response_that_is_refused_or_cut_says_so(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        client.responses.create(model=MODEL, input=ASK, max_output_tokens=5000)
    assert (refused.value.code, refused.value.param) == ("context_length_exceeded", "max_output_tokens")
    cut = client.responses.create(model=MODEL, input=ASK, max_output_tokens=2, temperature=0)
    assert cut.status == "incomplete" and cut.incomplete_details is not None
    assert cut.incomplete_details.reason == "max_output_tokens"


def test_a_message_equals_the_chats_answer_streamed_and_unstreamed(claude: anthropic.Anthropic) -> None:
    messages = [{"role": "user", "content": ASK}]
    whole = claude.messages.create(model=MODEL, max_tokens=30, messages=messages, extra_body=GREEDY)
    assert whole.content[0].text == "3 4 5 6 7"
    assert whole.stop_reason == "end_turn"
    with claude.messages.stream(model=MODEL, max_tokens=30, messages=messages, extra_body=GREEDY) as stream:
        text = "".join(stream.text_stream)
        final = stream.get_final_message()
    assert text == final.content[0].text == "3 4 5 6 7"
    assert final.usage.output_tokens == whole.usage.output_tokens
    counted = claude.messages.count_tokens(model=MODEL, messages=messages).input_tokens
    assert counted == whole.usage.input_tokens + (whole.usage.cache_read_input_tokens or 0)


def test_a_final_assistant_turn_is_continued(claude: anthropic.Anthropic) -> None:
    turns = [{"role": "user", "content": ASK}, {"role": "assistant", "content": "3 4"}]
    reply = claude.messages.create(
        model=MODEL,
        max_tokens=30,
        messages=turns,
        stop_sequences=["7"],
        extra_body=GREEDY,
    )
    assert reply.content[0].text.strip() == "5 6"
    assert (reply.stop_reason, reply.stop_sequence) == ("stop_sequence", "7")


def test_anthropics_client_sends_its_key_in_its_own_header(locked: RunningServer) -> None:
    ask = {"model": MODEL, "max_tokens": 2, "messages": [{"role": "user", "content": ASK}]}
    right = anthropic.Anthropic(base_url=locked.url, api_key=KEY, max_retries=0)
    assert right.messages.create(**ask).usage.output_tokens == 2
    with pytest.raises(anthropic.AuthenticationError):
        anthropic.Anthropic(base_url=locked.url, api_key="sk-wrong", max_retries=0).messages.create(**ask)
    elsewhere = openai.OpenAI(base_url=locked.url + "/v1", api_key="no", default_headers={"x-api-key": KEY})
    with pytest.raises(openai.AuthenticationError):
        elsewhere.models.list()
