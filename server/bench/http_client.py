"""Small HTTP/1.1 client for benchmarks: one request per connection, and its body as it arrives.

It shares the machine with the server that it measures, so it does little: no pool, no redirects, no compression. h11
reads and writes heads. Bodies are decoded here: per chunk of a stream h11 takes 15 us, this decoder 2 us, and the rest
of the load generator about 20 us.
"""

import asyncio
import os
import re
import ssl
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass

import h11

from server.bench.authorization import bearer
from server.bench.server_url import UNIX, authority, parse_server_url
from server.bench.unreachable import TRY_TLS, tls_fault

READ_BYTES = 1 << 16
MAX_HEAD_BYTES = 1 << 16


class HttpError(Exception):
    """A response that is not HTTP, is cut, or has a status other than 200. One line."""


def reason_of(error: OSError | HttpError) -> str:
    """Return why a request failed, in the system's words: "Connection refused" without its number."""
    if (fault := tls_fault(error)) is not None:
        return fault
    numbers = re.findall(r"\[Errno (\d+)\]", str(error))  # several if a host has several addresses
    number = error.errno if isinstance(error, OSError) and error.errno else int(numbers[0]) if numbers else 0
    if number > 0:
        return os.strerror(number)
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


@dataclass(frozen=True)
class Endpoint:
    """Address of an OpenAI-style API: everything before /v1."""

    host: str
    port: int
    root: str = ""
    is_tls: bool = False
    api_key: str | None = None
    uds: str = ""  # path of a Unix socket, which takes the place of host and port

    @classmethod
    def parse(cls, url: str, api_key: str | None = None) -> "Endpoint":
        """Parse "http://host:8000", with or without "/v1" at its end. Raises ValueError, also for the key."""
        if api_key is not None:
            bearer(api_key)
        parts = parse_server_url(url)
        return cls(parts.host, parts.port, parts.root, parts.is_tls, api_key, parts.uds)

    @property
    def url(self) -> str:
        """The URL without /v1 and without the key."""
        if self.uds:
            return UNIX + self.uds
        return f"{'https' if self.is_tls else 'http'}://{authority(self.host, self.port)}{self.root}"

    def head(self, method: str, path: str, body_len: int) -> h11.Request:
        """Return the head of a request after whose response the server closes the connection."""
        host = self.host if self.host.isascii() else self.host.encode("idna").decode()
        headers = [
            ("Host", authority(host, self.port)),
            ("Connection", "close"),
            ("Content-Type", "application/json"),
            ("Content-Length", str(body_len)),
        ]
        if self.api_key is not None:
            headers.append(("Authorization", bearer(self.api_key)))
        return h11.Request(method=method, target=self.root + path, headers=headers)


class BodyDecoder:
    """Decoder of a body in chunks (RFC 9112, 7.1), of a given length, or until the connection closes."""

    def __init__(self, headers: Mapping[str, str]) -> None:
        """`headers`: of the response, names in lower case."""
        self._is_chunked = "chunked" in headers.get("transfer-encoding", "").lower()
        self._remaining = int(headers["content-length"]) if "content-length" in headers else None
        self._buffer = bytearray()
        self.is_complete = False

    def feed(self, received: bytes) -> bytes:
        """Return the part of the body that `received` completes; b"" means that the connection is closed.

        Raises HttpError if the body ends early or its chunks are malformed.
        """
        if not received:
            self._close()
            return b""
        return self._decode_chunks(received) if self._is_chunked else self._count(received)

    def _close(self) -> None:
        if not self.is_complete and (self._is_chunked or self._remaining is not None):
            raise HttpError("the connection was closed within a response")
        self.is_complete = True

    def _count(self, received: bytes) -> bytes:
        if self._remaining is not None:
            self._remaining -= len(received)
            self.is_complete = self._remaining <= 0
        return received

    def _decode_chunks(self, received: bytes) -> bytes:
        """Return the content of the received chunks. A chunk of length 0 ends the body; trailers are ignored."""
        self._buffer += received
        body = bytearray()
        start = 0
        while (line_end := self._buffer.find(b"\r\n", start)) >= 0:
            length = self._parse_length(start, line_end)
            first, end = line_end + 2, line_end + 2 + length
            if length == 0:
                self.is_complete = True
                break
            if len(self._buffer) < end + 2:
                break
            body += self._buffer[first:end]
            start = end + 2
        del self._buffer[:start]
        return bytes(body)

    def _parse_length(self, start: int, end: int) -> int:
        try:
            return int(self._buffer[start:end].partition(b";")[0], 16)
        except ValueError:
            raise HttpError("the chunks of the response are malformed") from None


@dataclass
class Response:
    """Response whose head was read."""

    status: int
    headers: dict[str, str]  # names in lower case
    _start_of_body: bytes  # what arrived together with the head
    _reader: asyncio.StreamReader

    async def parts(self) -> AsyncGenerator[bytes, None]:
        """Yield the body as it arrives, in pieces of any length. Raises HttpError."""
        decoder = BodyDecoder(self.headers)
        if self._start_of_body:
            yield decoder.feed(self._start_of_body)
        while not decoder.is_complete:
            yield decoder.feed(await self._reader.read(READ_BYTES))

    async def body(self) -> bytes:
        """Read the whole body. Raises HttpError."""
        return b"".join([part async for part in self.parts()])


@asynccontextmanager
async def request(endpoint: Endpoint, method: str, path: str, body: bytes = b"") -> AsyncGenerator[Response, None]:
    """Send a request and yield the response when its head has arrived. Raises OSError and HttpError."""
    reader, writer = await _connect(endpoint)
    try:
        connection = h11.Connection(h11.CLIENT, MAX_HEAD_BYTES)
        writer.write((connection.send(endpoint.head(method, path, len(body))) or b"") + body)
        await writer.drain()
        yield await _read_head(connection, reader, endpoint)
    finally:
        writer.close()


async def _connect(endpoint: Endpoint) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    if endpoint.uds:
        return await asyncio.open_unix_connection(endpoint.uds)
    context = ssl.create_default_context() if endpoint.is_tls else None
    try:
        return await asyncio.open_connection(endpoint.host, endpoint.port, ssl=context)
    except UnicodeError:  # a label that is empty or too long
        raise OSError("DNS has no such names") from None


async def _read_head(connection: h11.Connection, reader: asyncio.StreamReader, endpoint: Endpoint) -> Response:
    try:
        while not isinstance(event := connection.next_event(), h11.Response):  # else incomplete, or a 1xx response
            if event is h11.NEED_DATA:
                connection.receive_data(await reader.read(READ_BYTES))
    except h11.RemoteProtocolError:
        raise HttpError(f"the response is not HTTP{'' if endpoint.is_tls else TRY_TLS}") from None
    headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in event.headers}
    return Response(event.status_code, headers, connection.trailing_data[0], reader)
