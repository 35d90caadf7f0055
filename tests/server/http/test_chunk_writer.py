"""Bytes of a connection against h11's own."""

from collections.abc import Sequence

import h11
import pytest

from server.http.chunk_writer import ServerConnection

END = h11.EndOfMessage()


def answer(connection: h11.Connection, request: bytes, events: Sequence[h11.Event]) -> list[bytes | None]:
    """Return the bytes of an answer's events."""
    connection.receive_data(request + b" /a HTTP/1.1\r\nhost: a\r\n\r\n")
    while not isinstance(connection.next_event(), h11.EndOfMessage):
        pass
    return [connection.send(event) for event in events]


def parts(*bodies: bytes, length: int | None = None) -> list[h11.Event]:
    headers = [] if length is None else [("content-length", str(length))]
    return [h11.Response(status_code=200, headers=headers), *(h11.Data(data=body) for body in bodies), END]


@pytest.mark.parametrize(
    ("request_method", "events"),
    [
        (b"GET", parts(b"a", b"", b"bc" * 300, b"\r\n0\r\n\r\n")),
        (b"GET", parts(b"abc", b"d", length=4)),
        (b"HEAD", parts(b"")),
    ],
    ids=["chunks", "length", "head"],
)
def test_answers_have_the_bytes_of_h11(request_method: bytes, events: list[h11.Event]) -> None:
    ours, theirs = ServerConnection(h11.SERVER), h11.Connection(h11.SERVER)
    for _ in range(2):  # on a connection that is kept alive
        assert answer(ours, request_method, events) == answer(theirs, request_method, events)
        assert ours.our_state is theirs.our_state is h11.DONE
        ours.start_next_cycle()
        theirs.start_next_cycle()


def test_data_outside_of_a_body_is_refused() -> None:
    connection = ServerConnection(h11.SERVER)
    with pytest.raises(h11.LocalProtocolError):
        connection.send(h11.Data(data=b"a"))
    connection = ServerConnection(h11.SERVER)
    answer(connection, b"GET", parts(b"a"))
    with pytest.raises(h11.LocalProtocolError):
        connection.send(h11.Data(data=b"b"))
