"""HTTP requests over a plain socket, and ways to disconnect that httpx does not offer."""

import asyncio
import contextlib
import json
import socket
import struct
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal
from urllib.parse import urlsplit

Leaving = Literal["fin", "rst", "half-close"]
LEAVINGS: tuple[Leaving, ...] = ("fin", "rst", "half-close")


def socket_to(url: str, sent: bytes) -> socket.socket:
    """Return a connection on which `sent` was sent before an event loop runs, so that no server timeout starts earlier.

    The server's socket must already listen; the connections wait in its backlog.
    """
    parts = urlsplit(url)
    client = socket.create_connection((parts.hostname or "", parts.port or 80), timeout=20)
    client.sendall(sent)
    client.setblocking(False)
    return client


def post_bytes(path: str, body: object, headers: Mapping[str, str] | None = None) -> bytes:
    """Return the bytes of a JSON request."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    lines = {
        "host": "localhost",
        "content-type": "application/json",
        "content-length": str(len(content)),
        **(headers or {}),
    }
    head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
    return f"POST {path} HTTP/1.1\r\n{head}\r\n".encode() + content


@dataclass
class Answer:
    """A response."""

    status: int
    headers: dict[str, str]
    body: bytes = b""
    events: list[dict[str, Any]] = field(default_factory=list)  # of a stream
    is_done: bool = False  # the stream's last line has arrived, or the body is complete

    def json(self) -> Any:
        return json.loads(self.body)


class RawClient:
    """One connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    @classmethod
    async def connect(cls, url: str, receive_bytes: int | None = None) -> "RawClient":
        """Open a connection. `receive_bytes`: size of the system's buffer, for clients that do not read."""
        parts = urlsplit(url)
        client = socket.socket()
        try:
            if receive_bytes is not None:
                client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
            client.setblocking(False)
            await asyncio.get_running_loop().sock_connect(client, (parts.hostname or "", parts.port or 80))
            return await cls.over(client)
        except BaseException:
            client.close()
            raise

    @classmethod
    async def over(cls, connected: socket.socket) -> "RawClient":
        return cls(*await asyncio.open_connection(sock=connected, limit=1 << 20))

    def post(self, path: str, body: object, headers: Mapping[str, str] | None = None) -> None:
        """Send a JSON request without waiting."""
        self.writer.write(post_bytes(path, body, headers))

    async def head(self) -> Answer:
        """Read status and headers."""
        lines = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        pairs = (line.partition(": ") for line in lines[1:] if line)
        return Answer(int(lines[0].split(" ")[1]), {name.lower(): value for name, _, value in pairs})

    async def answer(self) -> Answer:
        """Read the complete response, streamed or not."""
        return await self.rest(await self.head())

    async def rest(self, answer: Answer) -> Answer:
        """Read what follows the head of a response."""
        if "content-length" in answer.headers:
            answer.body = await self.reader.readexactly(int(answer.headers["content-length"]))
            answer.is_done = True
        else:
            async for event in self.events(answer):
                answer.events.append(event)
        return answer

    async def events(self, answer: Answer) -> AsyncIterator[dict[str, Any]]:
        """Yield the events of a stream; set `is_done` of the response at [DONE]."""
        while line := await self.reader.readline():
            if line.startswith(b"data: {"):
                yield json.loads(line.removeprefix(b"data: "))
            elif line.startswith(b"data: [DONE]"):
                answer.is_done = True
            elif line == b"0\r\n":
                return

    async def leave(self, how: Leaving) -> None:
        """Close the connection before its response is complete."""
        if how == "half-close":  # ends only the sending side: the server treats it as a disconnect
            self.writer.write_eof()
            while await self.reader.read(1 << 16):
                pass
        elif how == "rst":
            linger = struct.pack("ii", 1, 0)
            with contextlib.suppress(OSError):  # the server has closed it already
                self.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            self.writer.transport.abort()
        self.close()

    def close(self) -> None:
        self.writer.close()
