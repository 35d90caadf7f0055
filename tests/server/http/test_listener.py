"""server/http/listener.py: bad addresses are reported by flag, good ones listen at once."""

import os
import socket
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import create_autospec

import pytest

from server.http.listener import ListenError, is_loopback, is_unix, listen, listen_unix, names_of, url_of


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


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder with a short path: the system allows sockets 107 bytes."""
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


def test_a_unix_socket_is_open_to_all_users_and_to_no_web_page(folder: Path) -> None:
    path = folder / "a.sock"
    mask = os.umask(0o077)
    try:
        with listen_unix(path) as listener, socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))
            assert stat.S_IMODE(path.stat().st_mode) == 0o666
            assert url_of(listener, scheme="http") == f"unix:{path}"
            assert is_unix(listener) and not is_loopback(listener) and names_of(listener) == ()
    finally:
        os.umask(mask)


def test_a_unix_socket_that_was_left_is_replaced_and_a_used_one_is_not(folder: Path) -> None:
    path = folder / "a.sock"
    listen_unix(path).close()
    with listen_unix(path):
        with pytest.raises(ListenError, match=rf"^--uds {path}: another process listens on it$"):
            listen_unix(path)
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))


def test_a_used_unix_socket_whose_queue_is_full_is_not_replaced(folder: Path) -> None:
    path = folder / "a.sock"
    with socket.socket(socket.AF_UNIX) as busy, socket.socket(socket.AF_UNIX) as client:
        busy.bind(str(path))
        busy.listen(0)
        client.connect(str(path))
        with pytest.raises(ListenError, match="another process listens on it"):
            listen_unix(path)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("file", "exists and is not a socket"),
        (".", "exists and is not a socket"),
        ("link", "exists and is not a socket"),
        ("datagrams", "Protocol wrong type for socket"),
        ("none/a.sock", "No such file or directory"),
        ("file/a.sock", "Not a directory"),
        ("a" * 107, "should have at most 107 bytes"),
        ("\0", "should be a path"),
    ],
)
def test_a_path_that_cannot_be_a_unix_socket_is_left_as_it_is(folder: Path, name: str, reason: str) -> None:
    (folder / "file").write_text("kept")
    (folder / "link").symlink_to("datagrams")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as datagrams:
        datagrams.bind(str(folder / "datagrams"))
        with pytest.raises(ListenError, match=f"^--uds .*: {reason}$"):
            listen_unix(folder / name)
    assert (folder / "file").read_text() == "kept" and len(os.listdir(folder)) == 3


@pytest.mark.parametrize(("host", "path"), [("/run/a.sock", "/run/a.sock"), ("unix:a.sock", "a.sock")])
def test_a_host_that_means_a_unix_socket_names_the_flag(host: str, path: str) -> None:
    with pytest.raises(ListenError, match=f"^--host {host}: .*; for a Unix socket: --uds {path}$"):
        listen(host, 0)
