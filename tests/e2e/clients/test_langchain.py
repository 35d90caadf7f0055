"""langchain-openai: chat, streams, tools and structured output."""

from typing import Literal

import pytest
from langchain_core.exceptions import ContextOverflowError
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI, OpenAI
from pydantic import BaseModel, SecretStr

from tests.support.servers.running import MODEL, RunningServer

COUNT = [SystemMessage("Be brief."), HumanMessage("Count from 3 to 7.")]


@pytest.fixture
def chat(server: RunningServer) -> ChatOpenAI:
    return ChatOpenAI(
        model=MODEL, base_url=server.url + "/v1", api_key=SecretStr("unused"), temperature=0, max_completion_tokens=200
    )


def test_chat_answers_and_streams_the_same(chat: ChatOpenAI) -> None:
    whole = chat.invoke(COUNT)
    assert whole.content
    assert "".join(str(chunk.content) for chunk in chat.stream(COUNT)) == whole.content
    assert isinstance(whole, AIMessage) and whole.usage_metadata is not None
    assert whole.usage_metadata["output_tokens"] > 0


@pytest.mark.anyio
async def test_chat_streams_in_an_event_loop(chat: ChatOpenAI) -> None:
    parts = [str(chunk.content) async for chunk in chat.astream(COUNT)]
    assert "".join(parts) == chat.invoke(COUNT).content


def test_completions_are_generated(server: RunningServer) -> None:
    llm = OpenAI(model=MODEL, base_url=server.url + "/v1", api_key=SecretStr("unused"), max_tokens=8, temperature=0)
    assert llm.invoke("It was a truth") == "".join(llm.stream("It was a truth")) != ""


class Verdict(BaseModel):
    """Class that structured output is parsed into."""

    is_true: bool
    certainty: int


def test_structured_output_is_parsed(chat: ChatOpenAI) -> None:
    verdict = chat.with_structured_output(Verdict, method="json_schema").invoke(COUNT)
    assert isinstance(verdict, Verdict)


@tool
def weather(day: Literal["today", "tomorrow"]) -> str:
    """Return the weather of a day."""
    return f"sunny {day}"


def test_a_tool_is_called_and_its_result_goes_back(chat: ChatOpenAI) -> None:
    with_tools = chat.bind_tools([weather], tool_choice="weather", parallel_tool_calls=False)
    called = with_tools.invoke(COUNT)
    assert isinstance(called, AIMessage)
    [call] = called.tool_calls
    assert call["name"] == "weather" and isinstance(call["args"]["day"], str)
    result = ToolMessage(weather.invoke(call["args"]), tool_call_id=call["id"])
    assert chat.invoke([*COUNT, called, result]).content is not None


def test_a_full_context_is_recognised(chat: ChatOpenAI) -> None:
    with pytest.raises(ContextOverflowError):
        chat.invoke("word " * 5000)
    with pytest.raises(ContextOverflowError):
        chat.invoke("word", max_completion_tokens=5000)
