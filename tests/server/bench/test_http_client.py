"""Heads and bodies of responses, in whatever pieces they arrive."""

import asyncio
import random
import socket
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.bench.http_client import BodyDecoder, Endpoint, HttpError, reason_of, request


def split(sent: bytes, rng: random.Random) -> list[bytes]:
    cuts = sorted(rng.sample(range(1, len(sent)), min(len(sent) - 1, rng.randint(0, 12))))
    return [sent[start:end] for start, end in zip([0, *cuts], [*cuts, len(sent)], strict=True)]


@given(st.lists(st.binary(min_size=1, max_size=40), max_size=6), st.randoms(use_true_random=False))
def test_a_body_in_chunks_is_the_same_however_it_is_split(parts: list[bytes], rng: random.Random) -> None:
    sent = b"".join(b"%X;x=1\r\n%b\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"
    decoder = BodyDecoder({"transfer-encoding": "chunked"})
    assert b"".join(map(decoder.feed, split(sent, rng))) == b"".join(parts)
    assert decoder.is_complete


@pytest.mark.parametrize("headers", [{"transfer-encoding": "chunked"}, {"content-length": "9"}])
def test_a_body_that_ends_early_is_an_error(headers: dict[str, str]) -> None:
    decoder = BodyDecoder(headers)
    decoder.feed(b"5\r\nabc")
    with pytest.raises(HttpError, match="within a response"):
        decoder.feed(b"")


def test_a_body_without_a_length_ends_with_its_connection() -> None:
    decoder = BodyDecoder({})
    assert decoder.feed(b"abc") == b"abc" and not decoder.is_complete
    decoder.feed(b"")
    assert decoder.is_complete


def test_a_chunk_without_a_length_is_an_error() -> None:
    with pytest.raises(HttpError):
        BodyDecoder({"transfer-encoding": "chunked"}).feed(b"zz\r\n")


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("http://127.0.0.1:8000", "http://127.0.0.1:8000"),
        ("127.0.0.1:8000/v1/", "http://127.0.0.1:8000"),
        ("https://a.example/proxy/v1", "https://a.example:443/proxy"),
        ("http://[::1]:5", "http://[::1]:5"),
    ],
)
def test_a_url_may_have_its_v1_or_not(url: str, shown: str) -> None:
    assert Endpoint.parse(url).url == shown


@pytest.mark.parametrize("url", ["ftp://a", "http://", "http://a:b", ""])
def test_an_invalid_url_is_refused(url: str) -> None:
    with pytest.raises(ValueError):
        Endpoint.parse(url)


def exchange(response: bytes, endpoint_fields: dict[str, Any] | None = None) -> tuple[int, bytes, bytes]:
    """Send a POST to a server that answers `response`. Return status, body and the request as the server read it."""

    async def scenario() -> tuple[int, bytes, bytes]:
        received = b""

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            nonlocal received
            received = await reader.readuntil(b"\r\n\r\n") + await reader.readexactly(4)
            writer.write(response)
            writer.close()

        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        async with server:
            endpoint = Endpoint("127.0.0.1", server.sockets[0].getsockname()[1], **(endpoint_fields or {}))
            async with request(endpoint, "POST", "/v1/completions", b"body") as found:
                return found.status, await found.body(), received

    return asyncio.run(scenario())


def test_a_request_has_a_head_and_its_body() -> None:
    response = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
    status, body, received = exchange(response, {"root": "/proxy", "api_key": "secret"})
    assert (status, body) == (200, b"ok")
    head, _, sent = received.partition(b"\r\n\r\n")
    first, *headers = head.lower().split(b"\r\n")
    assert (first, sent) == (b"post /proxy/v1/completions http/1.1", b"body")
    assert {b"connection: close", b"content-length: 4", b"authorization: bearer secret"} <= set(headers)


def test_informational_responses_are_skipped() -> None:
    final = b"HTTP/1.1 429 Too Many\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"
    assert exchange(b"HTTP/1.1 103 Early Hints\r\n\r\n" + final)[:2] == (429, b"abc")


@pytest.mark.parametrize("response", [b"", b"hello\r\n\r\n", b"HTTP/1.1 200", b"HTTP/1.1 ok\r\n\r\n"])
def test_a_response_that_is_not_http_is_an_error(response: bytes) -> None:
    with pytest.raises(HttpError, match="not HTTP"):
        exchange(response)


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (ConnectionRefusedError(111, "Connect call failed ('127.0.0.1', 1)"), "Connection refused"),
        (
            OSError("Multiple exceptions: [Errno 111] Connect call failed, [Errno 111] Connect call failed"),
            "Connection refused",
        ),
        (socket.gaierror(-2, "Name or service not known"), "Name or service not known"),
        (ConnectionResetError(), "ConnectionResetError"),
        (HttpError("the response is not HTTP"), "the response is not HTTP"),
    ],
)
def test_a_reason_has_words_and_no_numbers(error: OSError | HttpError, words: str) -> None:
    assert reason_of(error) == words
