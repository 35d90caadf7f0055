"""`smoe health` finds the server by its settings, with TLS too, and says in one line why it is not healthy."""

import contextlib
import re
import socket
import threading
from pathlib import Path

import httpx
import pytest

from server.cli import health
from server.cli.health import ALIVE, READY, fault
from server.settings.sources import load_settings
from tests.server.cli.test_main import smoe
from tests.support.checkpoints.tokenizer_only import write_tokenizer
from tests.support.paths import ROOT
from tests.support.ports import free_port
from tests.support.servers.server_process import running
from tests.support.tls import CERTIFICATE, KEY

TLS = {"ssl_certfile": str(CERTIFICATE), "ssl_keyfile": str(KEY)}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory for the fake engine, which reads no weights."""
    folder = tmp_path_factory.mktemp("checkpoint")
    write_tokenizer(folder)
    return folder


@pytest.mark.parametrize("tls", [{}, TLS], ids=["http", "https"])
def test_a_server_is_found_by_variables_and_by_flags(checkpoint: Path, tls: dict[str, str]) -> None:
    with running("count", checkpoint, **tls) as server:
        server.wait_ready()
        port = str(httpx.URL(server.url).port)
        variables = {f"SMOE_{name.upper()}": value for name, value in tls.items()}
        ran = smoe("health", SMOE_HOST="0.0.0.0", SMOE_PORT=port, **variables)
        assert (ran.returncode, ran.stdout, ran.stderr) == (0, "", "")
        flags = [part for name, value in tls.items() for part in (f"--{name.replace('_', '-')}", value)]
        assert smoe("health", "--ready", "--port", port, *flags).returncode == 0


def test_a_server_that_loads_is_alive_and_not_ready(checkpoint: Path) -> None:
    port = free_port()
    with running("mute", checkpoint, port=str(port)) as server:
        server.read_until("loads")
        settings = load_settings({"port": str(port)})
        assert fault(settings, ALIVE) == ""
        assert fault(settings, READY) == f"127.0.0.1:{port}/health/ready answers 503"
        server.process.kill()


def test_a_port_without_a_server_exits_1_with_a_line() -> None:
    port = free_port()
    ran = smoe("health", "--port", str(port))
    assert ran.returncode == 1
    assert ran.stderr == f"smoe: no answer from 127.0.0.1:{port}: Connection refused\n"


def test_an_answer_that_never_ends_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each byte comes in time; at last the answer would be a good one."""
    monkeypatch.setattr(health, "TIMEOUT_S", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        is_over = threading.Event()

        def drip() -> None:
            connection, _ = listener.accept()
            with connection, contextlib.suppress(OSError):
                connection.sendall(b"HTTP/1.1 200 OK\r\nx: ")
                for _ in range(40):
                    is_over.wait(0.05)
                    connection.sendall(b"x")
                connection.sendall(b"\r\n\r\n")

        thread = threading.Thread(target=drip)
        thread.start()
        port = listener.getsockname()[1]
        assert fault(load_settings({"port": str(port)}), ALIVE) == f"no answer from 127.0.0.1:{port}: timed out"
        is_over.set()
        thread.join()


def test_a_name_that_cannot_be_one_has_no_answer() -> None:
    assert fault(load_settings({"host": "a" * 70}), ALIVE).startswith(f"no answer from {'a' * 70}:8000: ")


def test_the_page_of_another_host_of_the_model_is_asked_without_tls() -> None:
    port = free_port()
    hosts = {"nnodes": 2, "node_rank": 1, "master_addr": "127.0.0.1", "tensor_parallel_size": 2}
    with socket.create_server(("127.0.0.1", port)) as listener:
        received: list[bytes] = []

        def answer() -> None:
            connection, _ = listener.accept()
            with connection:
                received.append(connection.recv(1 << 13))
                connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")

        thread = threading.Thread(target=answer)
        thread.start()
        assert fault(load_settings({"port": str(port), **hosts, **TLS}), ALIVE) == ""
        thread.join()
    assert received[0].startswith(b"GET /health/live ")


def test_a_wrong_setting_exits_1_as_docker_wants_it() -> None:
    ran = smoe("health", SMOE_PORT="x")
    assert ran.returncode == 1 and ran.stderr.startswith("smoe: ") and "SMOE_PORT" in ran.stderr


def test_the_image_asks_with_its_own_settings() -> None:
    [command] = re.findall(r"^HEALTHCHECK .* CMD (.*)$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    assert command == '["/opt/smoe/bin/smoe", "health"]'
