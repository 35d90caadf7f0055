"""URLs of servers: both clients refuse the same ones in one line, and send the rest as HTTP wants them."""

import asyncio
from collections.abc import Callable

import pytest

from server.bench.http_client import Endpoint, HttpError
from server.bench.load_generator import first_model
from server.bench.server_url import ServerUrl, parse_server_url
from server.cli.client.api_client import ApiClient, ApiError

MODELS = b'{"data": [{"id": "m", "max_model_len": 8}]}'
RESPONSE = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(MODELS), MODELS)
PASSWORD = "s3cret"


def by_bench(url: str) -> str:
    return asyncio.run(first_model(Endpoint.parse(url)))


def by_terminal(url: str) -> str:
    return str(ApiClient(url, None).get("/v1/models")["data"][0]["id"])


CLIENTS = [by_bench, by_terminal]


def first_line(client: Callable[[str], str], path: str) -> str:
    """Return the first line of the request that a client sends to a server at this path."""
    lines: list[bytes] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        lines.append((await reader.readuntil(b"\r\n\r\n")).split(b"\r\n")[0])
        writer.write(RESPONSE)
        writer.close()

    async def scenario() -> None:
        async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
            port = server.sockets[0].getsockname()[1]
            assert await asyncio.to_thread(client, f"http://127.0.0.1:{port}{path}") == "m"

    asyncio.run(scenario())
    return lines[0].decode()


@pytest.mark.parametrize("client", CLIENTS)
@pytest.mark.parametrize(
    ("path", "sent"),
    [
        ("/ä", "/%C3%A4"),
        ("/a b/v1/", "/a%20b"),
        ("/a%20b", "/a%20b"),
        ("/\udce4", "/%E4"),  # a byte of an argument that is not UTF-8
        ("/a\x00<>", "/a%00%3C%3E"),
        ("/v1", ""),
    ],
)
def test_a_path_is_sent_percent_encoded(client: Callable[[str], str], path: str, sent: str) -> None:
    assert first_line(client, path) == f"GET {sent}/v1/models HTTP/1.1"


@pytest.mark.parametrize("client", CLIENTS)
@pytest.mark.parametrize("port", ["84267", "65536", "0", "-1", "port", "8e3"])
def test_a_port_that_cannot_be_is_refused_with_the_url(client: Callable[[str], str], port: str) -> None:
    url = f"http://127.0.0.1:{port}"
    with pytest.raises((ApiError, ValueError)) as raised:
        client(url)
    assert str(raised.value) == f"{url}: the port should be a number from 1 to 65535"


@pytest.mark.parametrize("client", CLIENTS)
@pytest.mark.parametrize(
    "url",
    [
        f"http://user:{PASSWORD}@127.0.0.1:1",
        f"user:{PASSWORD}@127.0.0.1:1",
        f"http://{PASSWORD}@127.0.0.1:1/v1",
        f"http://user:{PASSWORD}@[::1",
        f"http://user:{PASSWORD}/1@127.0.0.1",
        f"ftp://user:{PASSWORD}@127.0.0.1",
        "http://@127.0.0.1:1",
    ],
)
def test_a_user_and_a_password_are_refused_and_not_shown(client: Callable[[str], str], url: str) -> None:
    with pytest.raises((ApiError, ValueError), match="the URL") as raised:
        client(url)
    assert PASSWORD not in str(raised.value) and "\n" not in str(raised.value)


def test_the_parts_of_a_url() -> None:
    assert parse_server_url("https://[::1]/a/v1/") == ServerUrl("::1", 443, "/a", True)
    assert parse_server_url("host") == ServerUrl("host", 80, "", False)
    assert parse_server_url("[::1]:5").authority == "[::1]:5"


def test_a_host_that_dns_cannot_have_is_a_server_that_is_not_there() -> None:
    with pytest.raises(HttpError, match=r"^no server at http://a\.\.b:1 \(DNS has no such names\)"):
        by_bench("http://a..b:1")


def test_a_host_in_other_letters_is_named_to_the_server_as_dns_does() -> None:
    assert dict(Endpoint.parse("http://bücher.example:5").head("GET", "/", 0).headers)[b"host"] == (
        b"xn--bcher-kva.example:5"
    )
