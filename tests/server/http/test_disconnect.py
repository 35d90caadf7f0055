"""server/http/disconnect.py with the whole app: work ends with its client; and the openai client over a socket."""

import asyncio
import json
from functools import partial
from typing import Literal

import openai
import pytest
from openai.types.chat import ChatCompletionMessageParam
from starlette.types import Message

from server.http.disconnect import ClientDisconnected, unless_disconnected
from server.http.protocol import Connection
from tests.support.servers.fake_engine import FakeEngine
from tests.support.servers.serving import MODEL, listening, outcomes, saying, state_around

pytestmark = pytest.mark.anyio

LONG = "word " * 40
MESSAGES: list[ChatCompletionMessageParam] = [{"role": "user", "content": "How is it?"}]


async def send_request(url: str, **fields: object) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    host, port = url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    body = json.dumps({"model": MODEL, "prompt": "a", "max_tokens": 100, **fields}).encode()
    headers = f"host: x\r\ncontent-type: application/json\r\ncontent-length: {len(body)}"
    writer.write(f"POST /v1/completions HTTP/1.1\r\n{headers}\r\n\r\n".encode() + body)
    await writer.drain()
    return reader, writer


async def receive_disconnect(disconnect: asyncio.Event) -> Message:
    await disconnect.wait()
    return {"type": "http.disconnect"}


async def test_the_result_and_the_error_of_the_work_are_passed_on() -> None:
    async def double(number: int) -> int:
        return 4 // number

    connected = partial(receive_disconnect, asyncio.Event())
    assert await unless_disconnected(connected, double(2)) == 2
    with pytest.raises(ZeroDivisionError):
        await unless_disconnected(connected, double(0))


async def test_a_disconnect_cancels_the_work_and_waits_for_its_cleanup() -> None:
    disconnect, events = asyncio.Event(), list[str]()

    async def work() -> None:
        disconnect.set()
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            events.append("cleaned up")

    with pytest.raises(ClientDisconnected):
        await unless_disconnected(partial(receive_disconnect, disconnect), work())
    assert events == ["cleaned up"]


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("num_steps", [0, 1, 5])
@pytest.mark.parametrize("n", [1, 3])
async def test_the_work_of_a_client_that_disconnects_is_aborted(streamed: bool, num_steps: int, n: int) -> None:
    engine = FakeEngine(saying(LONG), held=True)
    state = state_around(engine)
    async with listening(state) as url:
        reader, writer = await send_request(url, stream=streamed, n=n)
        await engine.until(lambda: len(engine.submitted) == n)
        for _ in range(num_steps):
            engine.step()
        if streamed and num_steps:
            await reader.readuntil(b"data: ")
        writer.transport.abort()
        async with asyncio.timeout(10):
            await engine.until(lambda: len(engine.aborted) == n)
    assert outcomes(state) == {"received": n, "abort": n}


@pytest.mark.parametrize("next_bytes", [b"\r\n", b"GET /ping HTTP/1.1\r\nhost: x\r\n\r\n"])
@pytest.mark.parametrize("streamed", [False, True])
async def test_a_client_that_leaves_behind_its_next_request_is_noticed(
    next_bytes: bytes, streamed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is read while the next request waits, the end of the connection neither."""
    monkeypatch.setattr(Connection, "leaving_check_s", 0.01)
    engine = FakeEngine(saying(LONG), held=True)
    state = state_around(engine)
    async with listening(state) as url:
        _, writer = await send_request(url, stream=streamed)
        await engine.until(lambda: bool(engine.submitted))
        writer.write(next_bytes)
        writer.close()
        async with asyncio.timeout(10):
            await engine.until(lambda: bool(engine.aborted))
    assert outcomes(state) == {"received": 1, "abort": 1}


async def test_a_client_that_waits_for_two_answers_is_not_taken_for_one_that_left(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    checked = asyncio.Event()
    check = Connection._on_leaving_check

    def noted(connection: Connection) -> None:
        check(connection)
        checked.set()

    monkeypatch.setattr(Connection, "leaving_check_s", 0.01)
    monkeypatch.setattr(Connection, "_on_leaving_check", noted)
    engine = FakeEngine(saying("one two"), held=True)
    async with asyncio.timeout(20), listening(state_around(engine)) as url:
        reader, writer = await send_request(url)
        await engine.until(lambda: bool(engine.submitted))
        writer.write(b"GET /ping HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
        await checked.wait()
        while engine.step():
            pass
        answers = await reader.read()
        writer.close()
    assert answers.count(b"HTTP/1.1 200 ") == 2


async def test_a_finished_choice_stays_finished_when_the_client_disconnects() -> None:
    engine = FakeEngine(lambda request: [5, 6, 2] if request.params.choice_index == 0 else [5] * 90, held=True)
    state = state_around(engine)
    async with listening(state) as url:
        reader, writer = await send_request(url, stream=True, n=2)
        await engine.until(lambda: len(engine.submitted) == 2)
        for _ in range(4):
            engine.step()
        await reader.readuntil(b'"finish_reason":"stop"')
        writer.transport.abort()
        async with asyncio.timeout(10):
            await engine.until(lambda: bool(engine.aborted))
    assert outcomes(state) == {"received": 2, "stop": 1, "abort": 1}


async def test_the_openai_client_completes_and_chats_streamed_and_not() -> None:
    state = state_around(FakeEngine(saying("It is well.")))
    async with listening(state) as url, openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="x", max_retries=0) as client:
        completion = await client.completions.create(model=MODEL, prompt="So:", logprobs=1)
        assert completion.choices[0].text == " It is well."
        assert completion.usage is not None and completion.usage.completion_tokens == 5
        texts = await client.completions.create(model=MODEL, prompt="So:", stream=True)
        assert "".join([chunk.choices[0].text async for chunk in texts]) == " It is well."
        chat = await client.chat.completions.create(model=MODEL, messages=MESSAGES, logprobs=True, top_logprobs=2)
        assert chat.choices[0].message.content == "It is well."
        async with client.chat.completions.stream(
            model=MODEL, messages=MESSAGES, stream_options={"include_usage": True}
        ) as stream:
            final = await stream.get_final_completion()
        assert final.choices[0].message.content == "It is well."
        assert final.usage is not None and final.usage.total_tokens == final.usage.prompt_tokens + 5
        assert [model.id async for model in client.models.list()] == [MODEL, "alias"]
        with pytest.raises(openai.NotFoundError) as not_found:
            await client.completions.create(model="other", prompt="a")
        assert not_found.value.code == "model_not_found"
        with pytest.raises(openai.BadRequestError) as bad:
            await client.completions.create(model=MODEL, prompt="a", n=129)
        assert bad.value.param == "n"


@pytest.mark.parametrize(
    ("how", "code"), [("died", "engine_dead"), ("row", "internal_error"), ("timeout", "deadline_exceeded")]
)
async def test_the_openai_client_raises_on_a_failure_in_mid_stream(
    how: Literal["died", "row", "timeout"], code: str
) -> None:
    engine = FakeEngine(saying("one two"), held=True)
    state = state_around(engine)
    async with listening(state) as url, openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="x", max_retries=0) as client:
        pending = asyncio.create_task(client.chat.completions.create(model=MODEL, messages=MESSAGES, stream=True))
        await engine.until(lambda: bool(engine.submitted))
        engine.step()
        chunks = await pending
        assert (await anext(chunks)).choices[0].delta.role == "assistant"
        engine.fail(how)
        with pytest.raises(openai.APIError) as error:
            async for _ in chunks:
                pass
    assert error.value.code == code
    assert outcomes(state) == {"received": 1, "timeout" if how == "timeout" else "error": 1}


async def test_a_stream_that_waits_sends_comments_until_it_has_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.api.formats.reply.KEEP_ALIVE_S", 0.001)
    engine = FakeEngine(saying("one"), held=True)
    async with listening(state_around(engine)) as url:
        reader, writer = await send_request(url, stream=True)
        assert b"HTTP/1.1 200" in await reader.readuntil(b": keep-alive\n\n")
        await engine.until(lambda: bool(engine.submitted))
        while engine.step():
            pass
        sent = await reader.readuntil(b"[DONE]")
        writer.close()
    assert b'"text":" one"' in sent
