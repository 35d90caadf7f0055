"""Endings of requests as their clients see them: completely, with an error, or without any end. Sockets or TLS."""

import asyncio
import functools
import ssl
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from tests.support.servers.raw_http import Answer, RawClient, post_bytes

NO_CONNECTION, CLOSED = "no connection", "closed before a response"
SILENT, LOST = "silent", "lost"  # cut off in the middle; no end at all. Neither may ever happen
LIMIT_S = 300.0  # no sound run takes this long


async def ending_of(url: str, body: object, headers: Mapping[str, str] | None = None) -> str:
    """Send a completion request on a new connection and return how it ends.

    "complete", "error event CODE", "STATUS CODE", or one of the constants above.
    """
    client = await connected(url)
    return NO_CONNECTION if client is None else await ending_on(client, body, headers)


async def connected(url: str) -> RawClient | None:
    """Connect, over TLS if the URL says so. None if the server closes the connection before that."""
    parts = urlsplit(url)
    context = _trusting_context() if parts.scheme == "https" else None
    try:
        return RawClient(*await asyncio.open_connection(parts.hostname, parts.port, ssl=context, limit=1 << 20))
    except OSError:
        return None


async def ending_on(client: RawClient, body: object, headers: Mapping[str, str] | None = None) -> str:
    """Send a completion request on a connection, close it, and return how the request ended."""
    try:
        async with asyncio.timeout(LIMIT_S):
            return await _exchange(client, post_bytes("/v1/completions", body, headers))
    except TimeoutError:
        return LOST


async def _exchange(client: RawClient, request: bytes) -> str:
    try:
        client.writer.write(request)
        try:
            head = await client.head()
        except (asyncio.IncompleteReadError, OSError):
            return CLOSED
        try:
            return _ending(await client.rest(head))
        except (asyncio.IncompleteReadError, OSError):
            return SILENT
    finally:
        client.close()


def _ending(answer: Answer) -> str:
    if answer.status != 200:
        return f"{answer.status} {answer.json()['error']['code']}"
    if not answer.is_done or not answer.events:
        return SILENT
    last: dict[str, Any] = answer.events[-1]
    if "error" in last:
        return f"error event {last['error']['code']}"
    return "complete" if last["choices"][0]["finish_reason"] else SILENT


@functools.cache
def _trusting_context() -> ssl.SSLContext:
    """Return one context for all clients, without the system's certificates: each takes 15 ms and 1 MB to read."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context
