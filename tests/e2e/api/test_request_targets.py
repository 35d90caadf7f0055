"""A request line with a whole URL, as clients send it to a proxy: the URL's host counts, not the Host header."""

from contextlib import closing
from http.client import HTTPConnection

import pytest

from tests.support.servers.running import RunningServer


def status_of(server: RunningServer, target: str, host: str) -> int:
    with closing(HTTPConnection(own_host(server), timeout=60)) as connection:
        connection.putrequest("GET", target, skip_host=True)
        connection.putheader("Host", host)
        connection.endheaders()
        return connection.getresponse().status


def own_host(server: RunningServer) -> str:
    return server.url.removeprefix("http://")


def test_a_url_of_the_server_is_served_whatever_the_header_says(server: RunningServer) -> None:
    own = own_host(server)
    assert status_of(server, f"http://{own}/v1/models", "evil.example") == 200
    assert status_of(server, f"http://{own}/v1/nothing", own) == 404


@pytest.mark.parametrize(
    ("authority", "status"),
    [("evil.example", 403), ("[::2]:80", 403), ("", 400), ("user@127.0.0.1", 400), ("127.0.0.1:x", 400)],
)
def test_a_url_of_another_host_is_refused_whatever_the_header_says(
    server: RunningServer, authority: str, status: int
) -> None:
    assert status_of(server, f"http://{authority}/v1/models", own_host(server)) == status
