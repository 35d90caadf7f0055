"""The server that `smoe chat` and `smoe complete` talk to without --url."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from typer.testing import CliRunner

from server.cli.main import app

pytestmark = pytest.mark.usefixtures("clean_environment")


@pytest.mark.parametrize(
    ("variables", "address"),
    [
        ({"SMOE_HOST": "127.0.0.1", "SMOE_PORT": "1"}, "127.0.0.1:1"),
        ({"SMOE_HOST": "::1", "SMOE_PORT": "1"}, "[::1]:1"),
    ],
)
def test_the_address_is_that_of_the_settings(
    variables: dict[str, str], address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    result = CliRunner().invoke(app, ["complete", "It was"])
    assert result.exit_code == 2
    assert f"no server at {address} " in result.stderr and "smoe serve" in result.stderr


def test_an_invalid_setting_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SMOE_PORT", "many")
    for arguments in (["complete", "It was"], ["chat"], ["doctor"]):
        result = CliRunner().invoke(app, arguments)
        assert (result.exit_code, result.stdout) == (2, "")
        assert result.stderr.startswith("smoe: SMOE_PORT: ") and result.stderr.count("\n") == 1


SHAPE = {"num_layers": 1, "num_experts": 2, "experts_per_token": 1}
ROUTING = {"gate_logits": [[[1.0, 0.0]]], "expert_routing": [[[0]]], "expert_weights": [[[1.0]]]}
CHUNK = {
    "choices": [
        {"text": "x", "delta": {"content": "x"}, "logprobs": {"tokens": ["x"]}, "finish_reason": "stop", **ROUTING}
    ]
}


class ServerWithAnAdapter(BaseHTTPRequestHandler):
    """Lists a model and an adapter, and streams one chunk to each request, which it keeps."""

    bodies: list[dict[str, Any]]

    def do_GET(self) -> None:
        self._reply(json.dumps({"data": [{"id": name, **SHAPE} for name in ("base", "sql")]}))

    def do_POST(self) -> None:
        self.bodies.append(json.loads(self.rfile.read(int(self.headers["content-length"]))))
        self._reply(f"data: {json.dumps(CHUNK)}\n\ndata: [DONE]\n\n")

    def _reply(self, text: str) -> None:
        self.send_response(200)
        self.send_header("content-length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, format: str, *arguments: object) -> None:
        """Write nothing."""


@pytest.fixture
def address() -> Iterator[str]:
    ServerWithAnAdapter.bodies = []
    with ThreadingHTTPServer(("127.0.0.1", 0), ServerWithAnAdapter) as server:
        threading.Thread(target=server.serve_forever).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


COMMANDS = {
    "complete": ["complete", "It was", "--model"],
    "chat": ["chat", "-q", "Hello", "--model"],
    "explain": ["explain", "--token", "0"],
}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_named_adapter_answers(command: str, address: str) -> None:
    CliRunner().invoke(app, [*COMMANDS[command], "sql", "--url", address], catch_exceptions=False)
    assert {body["model"] for body in ServerWithAnAdapter.bodies} == {"sql"}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_model_that_is_not_served_is_an_error(command: str, address: str) -> None:
    result = CliRunner().invoke(app, [*COMMANDS[command], "sqk", "--url", address])
    assert (result.exit_code, ServerWithAnAdapter.bodies) == (2, [])
    assert result.stderr == "smoe: the server has no model sqk, but base, sql\n"
