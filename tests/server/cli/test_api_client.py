"""The terminal's commands say in one line what is wrong with the server that they talk to."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from server.cli.api_client import ApiClient, RemoteError
from server.cli.chat import served_model

CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
CHUNK = b'data: {"choices": []}\n\n'


@contextmanager
def answering(reply: bytes) -> Iterator[ApiClient]:
    """A server that gives one client these bytes, whatever it asks, and closes."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(1 << 16)
                connection.sendall(reply)

        thread = threading.Thread(target=answer)
        thread.start()
        yield ApiClient(f"127.0.0.1:{listener.getsockname()[1]}", None)
        thread.join()


@pytest.mark.parametrize(
    "reply",
    [
        b"",
        CHUNKED + b"%x\r\n%s\r\n" % (len(CHUNK), CHUNK),
        CHUNKED + b"40\r\ndata: ",
        CHUNKED + b"no length\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 90\r\n\r\n" + CHUNK,
    ],
    ids=["nothing", "between chunks", "within a chunk", "no chunks", "within a length"],
)
def test_a_stream_that_is_cut_is_an_error_and_no_traceback(reply: bytes) -> None:
    with answering(reply) as remote, pytest.raises(RemoteError, match="the connection was cut"):
        list(remote.stream("/v1/completions", {}))


@pytest.mark.parametrize("body", [b"<html>", b"[]", b'{"data": []}', b'{"data": [{}]}', b"\xff"])
def test_what_is_no_server_of_models_is_named(body: bytes) -> None:
    reply = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)
    with answering(reply) as remote, pytest.raises(RemoteError, match=r"is no smoe|names no model"):
        served_model(remote)


@pytest.mark.parametrize("url", ["http://[::1", "ftp://host", "http://", "http://127.0.0.1:port"])
def test_what_is_no_url_is_an_error_and_no_traceback(url: str) -> None:
    with pytest.raises(RemoteError):
        ApiClient(url, None).get("/v1/models")
