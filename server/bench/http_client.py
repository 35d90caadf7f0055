"""A small HTTP/1.1 client for benchmarks: one POST or GET per connection, the body given as it arrives.

It shares the machine with the server that it measures, so it does little: no pool, no redirects, no compression.
"""

import asyncio
import ssl
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from urllib.parse import urlsplit

READ_BYTES = 1 << 16
MAX_HEAD_BYTES = 1 << 16


class HttpError(Exception):
    """The server did not answer as HTTP, or not with a 200. One line."""


@dataclass(frozen=True)
class Endpoint:
    """Where an OpenAI-style API is: what stands before /v1."""

    host: str
    port: int
    root: str = ""
    is_tls: bool = False
    api_key: str | None = None

    @classmethod
    def parse(cls, url: str, api_key: str | None = None) -> "Endpoint":
        """From "http://host:8000", with or without "/v1" at its end. Raises ValueError."""
        parts = urlsplit(url if "://" in url else f"http://{url}")
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"{url}: should be like http://127.0.0.1:8000")
        is_tls = parts.scheme == "https"
        root = parts.path.rstrip("/").removesuffix("/v1")
        return cls(parts.hostname, parts.port or (443 if is_tls else 80), root, is_tls, api_key)

    @property
    def url(self) -> str:
        """As it is shown."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'https' if self.is_tls else 'http'}://{host}:{self.port}{self.root}"

    def request(self, method: str, path: str, body: bytes) -> bytes:
        """The bytes of a request; the connection closes behind its answer."""
        head = f"{method} {self.root}{path} HTTP/1.1\r\nHost: {self.host}:{self.port}\r\nConnection: close\r\n"
        head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n"
        if self.api_key is not None:
            head += f"Authorization: Bearer {self.api_key}\r\n"
        return head.encode() + b"\r\n" + body


class BodyDecoder:
    """The body's bytes out of what arrives behind a head: in chunks (RFC 9112, 7.1), of a length, or until the end."""

    def __init__(self, headers: dict[str, str]) -> None:
        self._is_chunked = "chunked" in headers.get("transfer-encoding", "").lower()
        self._remaining = int(headers["content-length"]) if "content-length" in headers else None
        self._buffer = bytearray()
        self.is_complete = False

    def feed(self, received: bytes) -> bytes:
        """What of the body `received` completes; b"" is the connection's end. Raises HttpError where that is early."""
        if not received:
            self._end()
            return b""
        return self._chunks(received) if self._is_chunked else self._plain(received)

    def _end(self) -> None:
        if not self.is_complete and (self._is_chunked or self._remaining is not None):
            raise HttpError("the connection closed within a reply")
        self.is_complete = True

    def _plain(self, received: bytes) -> bytes:
        if self._remaining is not None:
            self._remaining -= len(received)
            self.is_complete = self._remaining <= 0
        return received

    def _chunks(self, received: bytes) -> bytes:
        """Trailers are not looked at: a chunk of length 0 ends the body."""
        self._buffer += received
        body = bytearray()
        start = 0
        while (line_end := self._buffer.find(b"\r\n", start)) >= 0:
            length = self._length(start, line_end)
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

    def _length(self, start: int, end: int) -> int:
        try:
            return int(self._buffer[start:end].partition(b";")[0], 16)
        except ValueError:
            raise HttpError("the reply's chunks cannot be read") from None


@dataclass
class Reply:
    """An answer whose head was read."""

    status: int
    headers: dict[str, str]
    _reader: asyncio.StreamReader

    async def parts(self) -> AsyncGenerator[bytes, None]:
        """The body as it arrives, in whatever pieces. Raises HttpError."""
        decoder = BodyDecoder(self.headers)
        while not decoder.is_complete:
            yield decoder.feed(await self._reader.read(READ_BYTES))

    async def body(self) -> bytes:
        """All of it."""
        return b"".join([part async for part in self.parts()])


@asynccontextmanager
async def request(endpoint: Endpoint, method: str, path: str, body: bytes = b"") -> AsyncGenerator[Reply, None]:
    """Sends a request; gives the answer once its head is there. Raises OSError and HttpError."""
    context = ssl.create_default_context() if endpoint.is_tls else None
    reader, writer = await asyncio.open_connection(endpoint.host, endpoint.port, ssl=context, limit=MAX_HEAD_BYTES)
    try:
        writer.write(endpoint.request(method, path, body))
        await writer.drain()
        yield await _reply(reader)
    finally:
        writer.close()


async def _reply(reader: asyncio.StreamReader) -> Reply:
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except (asyncio.IncompleteReadError, asyncio.LimitOverrunError):
        raise HttpError("no HTTP answer") from None
    status_line, *lines = head.decode("latin-1").split("\r\n")
    fields = status_line.split(" ", 2)
    if len(fields) < 2 or not fields[1].isdecimal():
        raise HttpError("no HTTP answer")
    pairs = (line.partition(":") for line in lines if line)
    headers = {name.strip().lower(): value.strip() for name, _, value in pairs}
    return Reply(int(fields[1]), headers, reader)
