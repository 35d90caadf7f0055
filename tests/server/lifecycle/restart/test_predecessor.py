"""server/lifecycle/restart/predecessor.py: descriptors that are passed at the start, and what is none of ours."""

import asyncio
import os
import socket
from pathlib import Path

import pytest

from server.http.listener import listen
from server.lifecycle.restart.predecessor import Inheritance
from server.settings import sources
from server.settings.sources import READY_NAME, inherited_descriptors


@pytest.fixture
def passed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[int]:
    """Descriptors in a row, as if they began at 3: a file, a listening socket, the writing end of a pipe. Behind all
    that the process of the tests has open. The last number is the reading end."""
    reader, writer = os.pipe()
    with listen("127.0.0.1", 0) as listener, (tmp_path / "file").open("w") as file:
        first = max(map(int, os.listdir("/proc/self/fd"))) + 1
        monkeypatch.setattr(sources, "FIRST_INHERITED_FD", first)
        for place, fd in enumerate((file.fileno(), listener.fileno(), writer)):
            os.dup2(fd, first + place, inheritable=True)
    os.close(writer)
    monkeypatch.setenv("LISTEN_PID", str(os.getpid()))
    monkeypatch.setenv("LISTEN_FDS", "3")
    monkeypatch.setenv("LISTEN_FDNAMES", f"file:http:{READY_NAME}")
    return [first, first + 1, first + 2, reader]


def close(fds: list[int]) -> None:
    for fd in fds:
        try:
            os.close(fd)
        except OSError:
            continue


@pytest.mark.anyio
async def test_the_listening_socket_is_taken_and_the_predecessor_hears_when_this_process_is_ready(
    passed: list[int],
) -> None:
    inherited = Inheritance()
    assert inherited.listener is not None and inherited.has_predecessor
    with inherited.listener, socket.create_connection(inherited.listener.getsockname()):
        assert inherited.report_ready() and inherited.report_ready()
        assert os.read(passed[-1], 10) == b"1"
        assert os.read(passed[-1], 10) == b""  # closed, and never reported twice
    assert not {"LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"} & set(os.environ)
    assert not os.get_inheritable(passed[0])
    close(passed)


def test_of_unix_sockets_only_one_with_a_path_is_taken(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    first = max(map(int, os.listdir("/proc/self/fd"))) + 10
    monkeypatch.setattr(sources, "FIRST_INHERITED_FD", first)
    monkeypatch.chdir(tmp_path)
    names = ["", "\0smoe-of-tests", "a.sock"]
    for place, name in enumerate(names):
        with socket.socket(socket.AF_UNIX) as listener:
            if name:
                listener.bind(name)
            os.dup2(listener.fileno(), first + place, inheritable=True)
    monkeypatch.setenv("LISTEN_PID", str(os.getpid()))
    monkeypatch.setenv("LISTEN_FDS", "3")
    inherited = Inheritance()
    assert inherited.listener is not None
    with inherited.listener:
        assert inherited.listener.getsockname() == "a.sock"
    close([first, first + 1])


@pytest.mark.anyio
async def test_a_predecessor_that_is_gone_is_noticed(
    passed: list[int],
) -> None:
    inherited = Inheritance()
    noticed = asyncio.Event()
    inherited.watch(on_predecessor_gone=noticed.set, on_first_process_gone=lambda: None)
    os.close(passed[-1])
    await noticed.wait()
    assert not inherited.report_ready()
    assert inherited.listener is not None
    inherited.listener.close()
    close(passed[:-1])


@pytest.mark.parametrize(
    ("pid", "count"),
    [("1", "1"), ("", ""), (None, None), (str(os.getpid()), "x"), (str(os.getpid()), "0")],
    ids=["another process", "empty", "absent", "no number", "no descriptor"],
)
def test_descriptors_of_other_processes_are_left_alone(
    monkeypatch: pytest.MonkeyPatch, pid: str | None, count: str | None
) -> None:
    for name, value in (("LISTEN_PID", pid), ("LISTEN_FDS", count)):
        monkeypatch.delenv(name, raising=False)
        if value is not None:
            monkeypatch.setenv(name, value)
    inherited = Inheritance()
    assert inherited.listener is None and not inherited.has_predecessor and inherited.report_ready()


def test_descriptors_without_a_name_have_their_number(passed: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LISTEN_FDNAMES", ":http")
    first = passed[0]
    assert inherited_descriptors() == {str(first): first, "http": first + 1, str(first + 2): first + 2}
    close(passed)
