"""The API client reports every fault of a server in one line."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from server.bench.http_client import Endpoint
from server.cli.chat.session import served_model
from server.cli.client.api_client import ApiClient, ApiError, NoServerError

CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
CHUNK = b'data: {"choices": []}\n\n'


@contextmanager
def server_answering(response: bytes) -> Iterator[ApiClient]:
    """Run a server that answers one request with these bytes and closes."""
    with server_recording(response, []) as client:
        yield client


@contextmanager
def server_recording(response: bytes, received: list[bytes]) -> Iterator[ApiClient]:
    """Run such a server, which appends the request's first bytes to `received`."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer() -> None:
            connection, _ = listener.accept()
            with connection:
                received.append(connection.recv(1 << 16))
                connection.sendall(response)

        thread = threading.Thread(target=answer)
        thread.start()
        yield ApiClient(f"127.0.0.1:{listener.getsockname()[1]}", None)
        thread.join()


@pytest.mark.parametrize(
    "response",
    [
        b"",
        CHUNKED + b"%x\r\n%s\r\n" % (len(CHUNK), CHUNK),
        CHUNKED + b"40\r\ndata: ",
        CHUNKED + b"no length\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 90\r\n\r\n" + CHUNK,
    ],
    ids=["nothing", "between chunks", "within a chunk", "bad chunk", "within a length"],
)
def test_a_stream_that_is_cut_is_an_error_in_one_line(response: bytes) -> None:
    with server_answering(response) as client, pytest.raises(ApiError, match="the connection was closed before"):
        list(client.stream("/v1/completions", {}))


@pytest.mark.parametrize("body", [b"<html>", b"[]", b'{"data": []}', b'{"data": [{}]}', b"\xff"])
def test_a_server_without_models_is_an_error(body: bytes) -> None:
    response = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)
    with server_answering(response) as client, pytest.raises(ApiError, match=r"is not smoe|lists no model"):
        served_model(client)


@pytest.mark.parametrize("url", ["http://[::1", "ftp://host", "http://", "http://127.0.0.1:port"])
def test_an_invalid_url_is_an_error_in_one_line(url: str) -> None:
    with pytest.raises(ApiError):
        ApiClient(url, None).get("/v1/models")


@pytest.mark.parametrize("host", ["a..b", ".a", f"{'a' * 64}.example", "ä" * 64])
def test_a_host_that_dns_cannot_have_is_a_server_that_is_not_there(host: str) -> None:
    with pytest.raises(NoServerError, match=f"^no server at {host}:1 .DNS has no such names.: start one") as raised:
        ApiClient(f"http://{host}:1", None).get("/v1/models")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("key", ["ключ", "a\nb", "\x7f", "a "])
def test_a_key_that_no_header_can_have_is_an_error_in_one_line(key: str) -> None:
    for client, error in ((ApiClient, ApiError), (Endpoint.parse, ValueError)):
        with pytest.raises(error, match=r"^--api-key: should be printable ASCII"):
            client("http://127.0.0.1:1", key)


def test_headers_of_a_call_are_sent_beside_the_clients_own() -> None:
    received: list[bytes] = []
    done = b"data: [DONE]\n\n"
    response = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(done), done)
    with server_recording(response, received) as client:
        assert list(client.stream("/v1/completions", {}, {"X-Session-Id": "abc"})) == []
    head = received[0].split(b"\r\n\r\n")[0].split(b"\r\n")
    assert {b"X-Session-Id: abc", b"Content-Type: application/json"} <= set(head)


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_a_number_that_json_cannot_have_is_refused_by_the_name_of_its_flag(value: float) -> None:
    client = ApiClient("http://127.0.0.1:1", None)
    for send in (client.post, lambda path, fields: list(client.stream(path, fields))):
        with pytest.raises(ApiError, match=f"^--experts-per-token {value}: should be a finite number$"):
            send("/v1/completions", {"temperature": 0.5, "experts_per_token": value})


def test_a_text_that_is_not_utf_8_is_refused_as_such() -> None:
    with pytest.raises(ApiError, match=r"^the text is not UTF-8$"):
        ApiClient("http://127.0.0.1:1", None).post("/v1/completions", {"prompt": "\udcff"})
