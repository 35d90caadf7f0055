"""Timings of streamed responses, and what counts as a failure."""

import asyncio
import json

import pytest

from server.bench.http_client import Endpoint
from server.bench.load_generator import RequestTiming, Target, send
from server.bench.workload import BenchRequest

HEAD = b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n"
DONE = b"data: [DONE]\n\n"


def event(**fields: object) -> bytes:
    return b"data: %b\n\n" % json.dumps(fields).encode()


def timing_of(response: bytes) -> RequestTiming:
    """Send a request to a server that gives these bytes."""

    async def scenario() -> RequestTiming:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(response)
            await writer.drain()
            writer.close()

        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        async with server:
            target = Target(Endpoint("127.0.0.1", server.sockets[0].getsockname()[1]), "m")
            return await send(target, BenchRequest("It was", 3), 0.0)

    return asyncio.run(scenario())


def test_chunks_with_text_have_a_time_and_usage_gives_the_counts() -> None:
    events = [
        event(choices=[{"delta": {"role": "assistant"}}]),
        b": keep-alive\n\n",
        event(choices=[{"text": "a"}]),
        event(choices=[{"delta": {"content": "b"}}]),
        event(choices=[{"text": ""}]),
        event(choices=[], usage={"prompt_tokens": 4, "completion_tokens": 2}),
    ]
    timing = timing_of(HEAD + b"".join(events) + DONE)
    assert (timing.error, len(timing.chunk_s), timing.prompt_tokens, timing.output_tokens) == (None, 2, 4, 2)
    assert not timing.counts_chunks
    assert timing.end_s >= timing.chunk_s[-1] >= timing.chunk_s[0] > 0


def test_without_usage_each_chunk_with_text_counts_as_a_token() -> None:
    events = [event(choices=[{"text": text}]) for text in ("a", "", "b", "c")]
    timing = timing_of(HEAD + b"".join(events) + DONE)
    assert (timing.error, timing.prompt_tokens, timing.output_tokens, timing.counts_chunks) == (None, 0, 3, True)


@pytest.mark.parametrize(
    ("response", "part"),
    [
        (HEAD + event(choices=[{"text": "a"}]), "without [DONE]"),
        (HEAD + event(error={"message": "engine died"}) + DONE, "engine died"),
        (HEAD + b"data: {\n\n" + DONE, "not JSON"),
        (HEAD + b"data: 1\n\n" + DONE, "not a JSON object"),
        (b'HTTP/1.1 429 Busy\r\n\r\n{"error": {"message": "try later"}}', "HTTP 429: try later"),
        (b"HTTP/1.1 502 Bad\r\n\r\n<html>", "HTTP 502: <html>"),
    ],
    ids=["cut", "error event", "not JSON", "no object", "error body", "other body"],
)
def test_a_failure_is_part_of_the_timing(response: bytes, part: str) -> None:
    error = timing_of(response).error
    assert error is not None and part in error


def test_a_body_asks_for_exact_lengths_and_usage() -> None:
    body = json.loads(Target(Endpoint("h", 1), "m", "chat").body(BenchRequest("It was", 3)))
    assert body["messages"] == [{"role": "user", "content": "It was"}]
    assert (body["max_tokens"], body["ignore_eos"], body["stream_options"]) == (3, True, {"include_usage": True})
    assert "ignore_eos" not in json.loads(Target(Endpoint("h", 1), "m", ignore_eos=False).body(BenchRequest([5], 3)))
