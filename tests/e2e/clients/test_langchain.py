"""langchain-openai: chat, streams, tools and structured output."""

import pytest
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage
from langchain_openai import ChatOpenAI, OpenAI
from pydantic import SecretStr

from tests.e2e.running import MODEL, RunningServer

COUNT = [SystemMessage("Be brief."), HumanMessage("Count from 3 to 7.")]


@pytest.fixture
def chat(server: RunningServer) -> ChatOpenAI:
    return ChatOpenAI(
        model=MODEL, base_url=server.url + "/v1", api_key=SecretStr("unused"), temperature=0, max_completion_tokens=60
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
