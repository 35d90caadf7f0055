"""Bytes of a connection against h11's own, and what it tolerates beyond h11."""

from collections.abc import Sequence

import h11
import pytest

from server.http.protocol import MAX_HEAD_BYTES
from server.http.server_connection import ServerConnection

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
    ours, theirs = ServerConnection(MAX_HEAD_BYTES), h11.Connection(h11.SERVER)
    for _ in range(2):  # on a connection that is kept alive
        assert answer(ours, request_method, events) == answer(theirs, request_method, events)
        assert ours.our_state is theirs.our_state is h11.DONE
        ours.start_next_cycle()
        theirs.start_next_cycle()


def test_data_outside_of_a_body_is_refused() -> None:
    connection = ServerConnection(MAX_HEAD_BYTES)
    with pytest.raises(h11.LocalProtocolError):
        connection.send(h11.Data(data=b"a"))
    connection = ServerConnection(MAX_HEAD_BYTES)
    answer(connection, b"GET", parts(b"a"))
    with pytest.raises(h11.LocalProtocolError):
        connection.send(h11.Data(data=b"b"))


def requests_of(*received: bytes) -> list[h11.Request]:
    """Return the requests of a connection that gets these bytes, each part in a read of its own."""
    connection, requests = ServerConnection(MAX_HEAD_BYTES), []
    for data in filter(None, received):  # an empty one would be the end
        connection.receive_data(data)
        while (event := connection.next_event()) is not h11.NEED_DATA:
            if isinstance(event, h11.Request):
                requests.append(event)
            elif isinstance(event, h11.EndOfMessage):
                connection.send(h11.Response(status_code=204, headers=[]))
                connection.send(END)
                connection.start_next_cycle()
    return requests


HEAD = b"GET /a HTTP/1.1\r\nhost: a\r\n\r\n"


@pytest.mark.parametrize("empty", [b"\r\n", b"\n", b"\r\n\r\n\n"])
def test_empty_lines_before_a_request_are_ignored(empty: bytes) -> None:
    """Old clients end a body with a line that its length does not count."""
    post = b"POST /b HTTP/1.1\r\nhost: a\r\ncontent-length: 2\r\n\r\n{}"
    assert [request.target for request in requests_of(empty + HEAD + post + empty + HEAD)] == [b"/a", b"/b", b"/a"]
    assert [request.target for request in requests_of(HEAD, empty[:1], empty[1:], HEAD)] == [b"/a", b"/a"]


@pytest.mark.parametrize(
    ("target", "host", "origin_form"),
    [
        (b"http://example.org/v1/models", b"example.org", b"/v1/models"),
        (b"HTTPS://example.org:8000/v1/models?a=http://b/", b"example.org:8000", b"/v1/models?a=http://b/"),
        (b"http://[::1]:8000", b"[::1]:8000", b"/"),
        (b"http://example.org?a=b", b"example.org", b"/?a=b"),
        (b"/v1/models", b"other", b"/v1/models"),
        (b"/http://example.org/", b"other", b"/http://example.org/"),
        (b"*", b"other", b"*"),
    ],
)
def test_the_host_of_a_whole_url_replaces_the_header(target: bytes, host: bytes, origin_form: bytes) -> None:
    head = b"GET " + target + b" HTTP/1.1\r\naccept: */*\r\nHost: other\r\n\r\n"
    (request,) = requests_of(head)
    assert (request.target, dict(request.headers)) == (origin_form, {b"accept": b"*/*", b"host": host})


@pytest.mark.parametrize("authority", [b"", b"user@example.org", b"example.org:x", b"example.org#f", b"a\\b", b"[::1"])
def test_a_target_that_names_no_host_is_malformed(authority: bytes) -> None:
    with pytest.raises(h11.RemoteProtocolError):
        requests_of(b"GET http://" + authority + b"/ HTTP/1.1\r\nhost: a\r\n\r\n")


def test_behind_a_target_without_a_host_nothing_is_read() -> None:
    connection = ServerConnection(MAX_HEAD_BYTES)
    connection.receive_data(b"POST http:/// HTTP/1.1\r\nhost: a\r\ncontent-length: 2\r\n\r\n{}")
    for _ in range(2):
        with pytest.raises(h11.RemoteProtocolError):
            connection.next_event()
    assert connection.their_state is h11.ERROR


def test_a_bare_carriage_return_before_a_request_is_malformed() -> None:
    for received in ((b"\r" + HEAD,), (b"\r", HEAD), (b"\r\n\r", HEAD)):
        with pytest.raises(h11.RemoteProtocolError):
            requests_of(*received)
