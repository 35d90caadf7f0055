"""server/http/listener.py: bad addresses are reported by flag, good ones listen at once."""

import socket
from unittest.mock import create_autospec

import pytest

from server.http.listener import ListenError, is_loopback, listen, url_of


def test_a_port_in_use_is_reported_by_its_flag() -> None:
    with listen("127.0.0.1", 0) as first:
        port = first.getsockname()[1]
        with pytest.raises(ListenError, match=f"^--port {port}: already in use"):
            listen("127.0.0.1", port)


@pytest.mark.parametrize("host", ["192.0.2.1", "a" * 300])
def test_an_invalid_host_is_reported_by_its_flag(host: str) -> None:
    with pytest.raises(ListenError, match=r"^--host "):
        listen(host, 0)


def test_the_url_works_for_clients_on_this_machine() -> None:
    with listen("0.0.0.0", 0) as everywhere, listen("127.0.0.1", 0) as here:
        assert url_of(everywhere, scheme="http") == f"http://127.0.0.1:{everywhere.getsockname()[1]}"
        assert url_of(here, scheme="https").startswith("https://127.0.0.1:")
        assert is_loopback(here)
        assert not is_loopback(everywhere)


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("127.0.0.2", True), ("::1", True), ("::ffff:127.0.0.1", True),
        ("192.0.2.1", False), ("::", False), ("::ffff:192.0.2.1", False), ("fe80::1%lo", False),
    ],
)  # fmt: skip
def test_loopback_addresses_of_both_families(address: str, expected: bool) -> None:
    listener = create_autospec(socket.socket, instance=True)  # the test machine may have no IPv6
    listener.getsockname.return_value = (address, 8000, 0, 0)
    assert is_loopback(listener) == expected


def test_a_listening_socket_accepts_connections_at_once() -> None:
    with listen("127.0.0.1", 0) as listener, socket.create_connection(listener.getsockname()) as connection:
        assert connection.getpeername() == listener.getsockname()
