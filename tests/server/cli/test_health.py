"""`smoe health` finds the server by its settings, with TLS too, and says in one line why it is not healthy."""

import re
from pathlib import Path

import httpx
import pytest

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


def test_the_image_asks_with_its_own_settings() -> None:
    [command] = re.findall(r"^HEALTHCHECK .* CMD (.*)$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    assert command == '["/opt/smoe/bin/smoe", "health"]'
