"""`smoe run` uses the server that runs if it fits; the flags of its own one."""

import contextlib
import json
import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner

from server.cli.client.api_client import ApiError
from server.cli.main import app
from server.cli.run import command, own_server
from server.settings.settings import Settings
from server.settings.sources import (
    WITHOUT_ADDRESS,
    environment_without_address,
    load_settings,
    origins,
    unknown_variables,
)
from tests.support.ports import free_port
from tests.support.tls import CERTIFICATE, KEY

pytestmark = pytest.mark.usefixtures("clean_environment")


@contextmanager
def answering(body: object) -> Iterator[int]:
    """A server that answers each GET with this body; yields its port."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            content = json.dumps(body).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.server_port
        server.shutdown()
        thread.join()


def models(name: str, max_model_len: int | None = 2048) -> dict[str, Any]:
    return {"data": [{"id": name, "max_model_len": max_model_len}]}


@pytest.mark.parametrize(
    ("body", "settings", "expected"),
    [
        (models("smoe-demo"), {}, True),
        (models("smoe-demo"), {"model": "smoe-demo"}, True),
        (models("other"), {}, True),
        (models("other"), {"model": "smoe-demo"}, False),
        (models("smoe-demo", None), {}, False),  # it loads
        (models("smoe-demo"), {"dtype": "float32"}, False),
        ({"data": []}, {}, False),
        ([1], {}, False),
        ({"data": [{"id": "smoe-demo"}]}, {}, False),
    ],
)
def test_the_running_server_is_used_if_it_is_ready_and_serves_the_model(
    body: object, settings: dict[str, Any], expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    with answering(body) as port:
        monkeypatch.setenv("SMOE_PORT", str(port))
        assert command._is_served(settings) is expected


def test_without_a_server_there_is_none_to_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SMOE_PORT", str(free_port()))
    assert not command._is_served({})


@pytest.mark.parametrize(
    ("before", "expected"),
    [(signal.SIG_IGN, signal.SIG_IGN), (signal.SIG_DFL, command._exit)],
    ids=["nohup", "default"],
)
def test_under_nohup_sighup_is_ignored(before: Any, expected: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    @contextlib.contextmanager
    def fake_server(*_: object) -> Iterator[Any]:
        yield SimpleNamespace(wait_ready=lambda show: None, url="http://127.0.0.1:1")

    monkeypatch.setattr(command, "_is_served", lambda settings: False)
    monkeypatch.setattr(own_server, "own_server", fake_server)
    previous = {signum: signal.getsignal(signum) for signum in command.ENDING_SIGNALS}
    signal.signal(signal.SIGHUP, before)
    try:
        with command.serving({}):
            assert signal.getsignal(signal.SIGHUP) == expected
            assert signal.getsignal(signal.SIGTERM) == command._exit
    finally:
        for signum, handler in previous.items():
            signal.signal(signum, handler)


def test_settings_become_flags_that_mean_the_same() -> None:
    given = {"model": "smoe-demo", "max_model_len": "100", "dtype": "float32"}
    name, *flags = own_server.serve_arguments(given)
    assert name == "smoe-demo"
    read = {
        flag.removeprefix("--").replace("-", "_"): value for flag, value in zip(flags[::2], flags[1::2], strict=True)
    }
    assert load_settings({"model": name, **read}) == load_settings(given)


def test_its_own_server_does_not_inherit_an_address(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = {"SMOE_API_KEY": "k", "SMOE_DTYPE": "float32"}
    for variable, value in {
        **kept,
        "SMOE_HOST": "::",
        "smoe_port": "1",
        "SMOE_UDS": "/no",
        "SMOE_SSL_CERTFILE": "/no",
    }.items():
        monkeypatch.setenv(variable, value)
    given = environment_without_address()
    del given[WITHOUT_ADDRESS]
    assert {name: value for name, value in given.items() if name.upper().startswith("SMOE_")} == kept


def test_its_own_server_takes_all_but_the_address_from_the_file_of_settings(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    tls = f"ssl-certfile: {CERTIFICATE}\nSSL_KEYFILE: {KEY}\n"
    address = "host: '::'\nport: 1\nuds: /no\nroot-path: /smoe\nallowed_hosts: [name.example]\n"
    (tmp_path / "smoe.yaml").write_text(f"{tls}{address}dtype: float32\n")
    monkeypatch.setenv("SMOE_CONFIG", str(tmp_path / "smoe.yaml"))
    assert load_settings({}).ssl_certfile == CERTIFICATE
    monkeypatch.setattr(os, "environ", environment_without_address())
    assert load_settings({}) == Settings(dtype="float32")
    assert set(origins({}).values()) == {"default", str(tmp_path / "smoe.yaml")}
    assert unknown_variables() == []


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({}, "starting"),
        ({"phase": "loading", "stage": "", "loaded_bytes": 0, "total_bytes": 0}, "starting"),
        ({"phase": "loading", "stage": "weights", "loaded_bytes": 3, "total_bytes": 8}, "weights 37%"),
    ],
)
def test_the_load_is_told_in_words(body: dict[str, Any], words: str) -> None:
    assert own_server._words(body) == words


def test_the_health_of_a_port_without_a_server_is_empty(tmp_path: Path) -> None:
    assert own_server._health(free_port()) == {}
    with answering([1]) as port:
        assert own_server._health(port) == {}


def test_servers_that_start_at_once_have_a_log_each(tmp_path: Path) -> None:
    log = tmp_path / "run.log"
    with own_server.own_server(["./first"], log) as first, own_server.own_server(["./second"], log) as second:
        for server, name in ((first, "./first"), (second, "./second")):
            with pytest.raises(ApiError, match=name):
                server.wait_ready(lambda _: None)
    assert "./second" in log.read_text()


def test_logs_that_are_created_at_the_same_moment_are_two_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    both, unlink, waited = threading.Barrier(2, timeout=60), Path.unlink, threading.local()

    def unlink_together(path: Path, *, missing_ok: bool) -> None:
        unlink(path, missing_ok=missing_ok)
        if not hasattr(waited, "once"):
            waited.once = True
            both.wait()

    monkeypatch.setattr(Path, "unlink", unlink_together)
    with ThreadPoolExecutor(2) as threads:
        first, second = threads.map(own_server._new_log, [tmp_path / "run.log"] * 2)
    with first, second:
        assert not os.path.sameopenfile(first.fileno(), second.fileno())


def test_an_infinite_temperature_is_refused_before_a_server_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "serving", None)
    result = CliRunner().invoke(app, ["run", "smoe-demo", "Hello", "--temperature", "inf"])
    assert (result.exit_code, result.stderr) == (2, "smoe: --temperature inf: should be a finite number\n")
