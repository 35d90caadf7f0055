"""Send a large body in slices: the client's connection takes each before the next one is copied."""

from collections.abc import Iterable, Iterator, Mapping, Sequence

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

SEND_BYTES = 1 << 18


def slices(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """Yield the concatenation of `pieces` in slices of at most SEND_BYTES."""
    small: list[bytes] = []
    num_bytes = 0  # of the small pieces that are not yielded yet
    for piece in pieces:
        if small and num_bytes + len(piece) > SEND_BYTES:
            yield b"".join(small)
            small, num_bytes = [], 0
        if len(piece) > SEND_BYTES:
            yield from (piece[first : first + SEND_BYTES] for first in range(0, len(piece), SEND_BYTES))
        else:
            small.append(piece)
            num_bytes += len(piece)
    if small:
        yield b"".join(small)


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
        for body in slices(self._pieces):
            await send({"type": "http.response.body", "body": body, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})
