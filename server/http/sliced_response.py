"""Send a large body in slices: the client's connection takes each before the next one is copied."""

from collections.abc import Mapping, Sequence

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

SEND_BYTES = 1 << 18


class SlicedResponse(Response):
    """Response whose body is the concatenation of `pieces`."""

    def __init__(self, pieces: Sequence[bytes], headers: Mapping[str, str], media_type: str) -> None:
        self.status_code = 200
        self.background = None
        self.media_type = media_type
        self._pieces = pieces
        self.init_headers({**headers, "content-length": str(sum(map(len, pieces)))})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        for piece in self._pieces:
            for first in range(0, len(piece), SEND_BYTES):
                body = piece[first : first + SEND_BYTES]
                await send({"type": "http.response.body", "body": body, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})
