"""server/http/sliced_response.py: a body in slices, with its length ahead."""

from collections.abc import Awaitable, Callable

import pytest

from server.http import sliced_response
from server.http.sliced_response import SlicedResponse
from tests.support.servers.asgi_client import Client


def test_the_body_is_the_pieces_in_slices_of_bounded_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sliced_response, "SEND_BYTES", 4)
    sizes: list[int] = []

    async def app(
        scope: dict[str, object], receive: object, send: Callable[[dict[str, object]], Awaitable[None]]
    ) -> None:
        async def counted(message: dict[str, object]) -> None:
            sizes.append(len(message.get("body", b"")))  # type: ignore[arg-type]
            await send(message)

        response = SlicedResponse([b"0123456789", b"", b"ab"], {"x-a": "b"}, "application/json")
        await response(scope, receive, counted)  # type: ignore[arg-type]

    reply = Client(app).send()  # type: ignore[arg-type]
    assert (reply.status, reply.body) == (200, b"0123456789ab")
    assert reply.headers == {"x-a": "b", "content-length": "12", "content-type": "application/json"}
    assert max(sizes) == 4
