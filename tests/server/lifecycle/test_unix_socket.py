"""`--uds`: the server on a Unix socket, through a SIGHUP, for curl's way of asking and for the commands of smoe."""

import asyncio
import tempfile
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from server.bench.http_client import Endpoint
from server.bench.load_generator import first_model
from server.bench.server_url import parse_server_url
from server.cli import health
from server.http.listener import listen_unix
from server.settings.sources import load_settings
from tests.server.cli.test_main import smoe
from tests.server.lifecycle.restart.generations import hang_up, of_systemd
from tests.support.servers.server_process import LONG, running
from tests.support.servers.serving import TLS_FILES


@pytest.fixture
def path() -> Iterator[Path]:
    """A path for a socket: short, for the system allows 107 bytes."""
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder) / "smoe.sock"


def asking(path: Path, host: str = "localhost") -> httpx.Client:
    return httpx.Client(transport=httpx.HTTPTransport(uds=str(path)), base_url=f"http://{host}", timeout=60)


def completes(path: Path, host: str) -> bool:
    with asking(path, host) as client:
        reply = client.post("/v1/completions", json={**LONG, "stream": False})
        streamed = client.post("/v1/completions", json=LONG).text
    return reply.json()["choices"][0]["finish_reason"] == "length" and streamed.endswith("data: [DONE]\n\n")


def test_a_unix_socket_serves_every_host_and_stays_at_a_sighup(checkpoint: Path, path: Path) -> None:
    with running("count", checkpoint, uds=str(path)) as server:
        server.wait_ready()
        assert not [line for line in server.lines if line.startswith("WARNING")], "no stranger reaches it"
        assert f"curl -N --unix-socket {path} http://localhost/v1/completions " in server.lines[-1]
        inode = path.stat().st_ino
        assert completes(path, "smoe.example")
        with asking(path) as client:
            page = client.get("/docs").text
        assert "http://localhost/v1/models" in page and "127.0.0.1" not in page
        hang_up(server)
        assert completes(path, "smoe.example")
        assert path.stat().st_ino == inode
        server.process.terminate()
        assert server.exit_code() == 0
    assert "Connection refused" in health.fault(load_settings({"uds": str(path)}), health.ALIVE)
    with running("count", checkpoint, uds=str(path)) as server:  # replaces what the first one left
        server.wait_ready()
        assert completes(path, "localhost")


def test_commands_find_the_server_by_url_and_by_variable(checkpoint: Path, path: Path) -> None:
    with running("count", checkpoint, uds=str(path)) as server:
        server.wait_ready()
        assert smoe("health", "--ready", "--uds", str(path)).returncode == 0
        by_variable = smoe("complete", "It was", "--max-tokens", "4", SMOE_UDS=str(path))
        by_url = smoe("complete", "It was", "--max-tokens", "4", "--url", f"unix://{path}/v1")
        assert by_variable.returncode == by_url.returncode == 0 and by_variable.stdout == by_url.stdout != ""
        assert asyncio.run(first_model(Endpoint.parse(f"unix:{path}"))) == "m"
    gone = smoe("complete", "It was", "--url", f"unix:{path}")
    assert gone.stderr == f"smoe: no server at unix:{path} (Connection refused): start one with `smoe serve`\n"


def test_a_unix_socket_of_systemd_is_served(checkpoint: Path, path: Path) -> None:
    with listen_unix(path) as listener, of_systemd("count", checkpoint, listener) as server:
        server.wait_ready()
        assert completes(path, "smoe.example")


def test_a_unix_socket_has_no_tls(checkpoint: Path, path: Path) -> None:
    with running("count", checkpoint, uds=str(path), **TLS_FILES) as server:
        assert "--ssl-certfile" in server.read_until("^(smoe: |curl )")
        assert server.exit_code() == 1  # of the tests' script
    assert not path.exists()


@pytest.mark.parametrize("url", ["unix:/run/a.sock", "unix:///run/a.sock", "unix:/run/a.sock/v1"])
def test_a_url_of_a_unix_socket(url: str) -> None:
    parts = parse_server_url(url)
    assert (parts.uds, parts.authority, parts.root) == ("/run/a.sock", "unix:/run/a.sock", "")


@pytest.mark.parametrize("url", ["unix:", "unix://", "unix:/a\0b", "unix://run/a.sock", "/run/a.sock", "a.sock"])
def test_a_url_without_a_path_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match=r"should be like (http://127.0.0.1:8000, or )?unix:/run/smoe\.sock"):
        parse_server_url(url)
