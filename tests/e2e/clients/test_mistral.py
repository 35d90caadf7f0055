"""mistralai, the client of Mistral's own API."""

from collections.abc import Iterator
from typing import Any

import pytest
from mistralai.client import Mistral
from mistralai.client.models import ModelList

from tests.support.servers.fake_engine import FakeEngine
from tests.support.servers.running import MODEL, RunningServer
from tests.support.servers.serving import client_of, saying, state_around

USER = {"role": "user", "content": "Count from 3 to 7."}
PARAMETERS = {"type": "object", "properties": {"a": {"type": "integer", "maximum": 9}}, "required": ["a"]}
TOOL = {"type": "function", "function": {"name": "add", "parameters": PARAMETERS}}


@pytest.fixture
def client(server: RunningServer) -> Iterator[Any]:
    with Mistral(api_key="none", server_url=server.url) as client:
        yield client


def test_models_are_listed(client: Any) -> None:
    assert [model.id for model in client.models.list().data] == [MODEL]
    assert client.models.retrieve(model_id=MODEL).capabilities.completion_chat


@pytest.mark.anyio
async def test_adapters_are_listed_as_fine_tuned_models() -> None:
    engine = FakeEngine(saying("a"))
    await engine.load_adapter("sql", "/adapters/sql")
    async with client_of(state_around(engine)) as http:
        listed = ModelList.model_validate((await http.get("/v1/models")).json())
    assert listed.data is not None
    assert [(model.id, model.type) for model in listed.data][-1] == ("sql", "fine-tuned")


def test_a_chat_is_answered_and_streamed(client: Any) -> None:
    fields = {"model": MODEL, "messages": [USER], "max_tokens": 20, "temperature": 0.0}
    answer = client.chat.complete(**fields).choices[0].message.content
    deltas = [event.data.choices[0].delta.content for event in client.chat.stream(**fields)]
    assert "".join(delta for delta in deltas if delta) == answer != ""


def test_a_prefix_is_continued(client: Any) -> None:
    messages = [USER, {"role": "assistant", "content": "3 4 5", "prefix": True}]
    reply = client.chat.complete(model=MODEL, messages=messages, max_tokens=20, temperature=0.0)
    assert reply.choices[0].message.content.split() == ["6", "7"]


def test_any_tool_is_called_and_its_result_read(client: Any) -> None:
    reply = client.chat.complete(model=MODEL, messages=[USER], max_tokens=60, tools=[TOOL], tool_choice="any")
    message = reply.choices[0].message
    [*_, call] = message.tool_calls
    assert call.function.name == "add"
    results = [{"role": "tool", "tool_call_id": each.id, "content": "1"} for each in message.tool_calls]
    reply = client.chat.complete(model=MODEL, messages=[USER, message, *results], max_tokens=5)
    assert reply.usage.completion_tokens > 0
