"""The start, as far as it happens before an engine is there: where a model is, the port, and what is printed."""

import io
import socket
from pathlib import Path

import msgspec
import pytest

from server.engine_client.status import EngineStatus
from server.http.listener import ListenError, is_loopback, listen, url_of
from server.lifecycle.startup_report import StartupReport, ready_lines, size
from server.model_location import ModelNotFoundError, locate_model, model_id
from server.observability.health import liveness, readiness
from tests.support.fake_engine_process import READY


def test_no_model_is_the_bundled_demo(tmp_path: Path) -> None:
    import model

    assert locate_model(None, tmp_path) == Path(model.__file__ or "").parent / "demo"
    assert model_id(None) == "smoe-demo"


def test_a_directory_is_named_after_itself_and_never_by_its_path(tmp_path: Path) -> None:
    checkpoint = tmp_path / "my-mixtral"
    checkpoint.mkdir()
    assert locate_model(str(checkpoint), tmp_path) == checkpoint
    assert model_id(f"{checkpoint}/") == "my-mixtral"


def test_a_repository_is_found_in_the_hub_cache(tmp_path: Path) -> None:
    folder = tmp_path / "models--org--name"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("abc\n")
    (folder / "snapshots" / "abc").mkdir(parents=True)
    assert locate_model("org/name", tmp_path) == folder / "snapshots" / "abc"
    assert model_id("org/name") == "org/name"


@pytest.mark.parametrize(
    ("name", "part"),
    [("org/name", "hf download org/name"), ("/no/where", "no such directory"), (__file__, "this is a file")],
)
def test_a_model_that_is_not_there_is_refused_with_the_way_out(tmp_path: Path, name: str, part: str) -> None:
    with pytest.raises(ModelNotFoundError, match=part):
        locate_model(name, tmp_path)


def test_a_reference_to_a_snapshot_that_is_gone_counts_as_missing(tmp_path: Path) -> None:
    refs = tmp_path / "models--org--name" / "refs"
    refs.mkdir(parents=True)
    (refs / "main").write_text("abc")
    with pytest.raises(ModelNotFoundError):
        locate_model("org/name", tmp_path)


def test_a_taken_port_is_refused_by_its_flag() -> None:
    with listen("127.0.0.1", 0) as first:
        port = first.getsockname()[1]
        with pytest.raises(ListenError, match=f"^--port {port}: already in use"):
            listen("127.0.0.1", port)


@pytest.mark.parametrize("host", ["192.0.2.1", "a" * 300])
def test_a_host_that_cannot_be_is_refused_by_its_flag(host: str) -> None:
    with pytest.raises(ListenError, match=r"^--host "):
        listen(host, 0)


def test_the_url_is_one_that_a_client_can_use() -> None:
    with listen("0.0.0.0", 0) as everywhere, listen("127.0.0.1", 0) as here:
        assert url_of(everywhere, scheme="http") == f"http://127.0.0.1:{everywhere.getsockname()[1]}"
        assert url_of(here, scheme="https").startswith("https://127.0.0.1:")
        assert is_loopback(here)
        assert not is_loopback(everywhere)


def test_a_listening_socket_takes_connections_at_once() -> None:
    with listen("127.0.0.1", 0) as listener, socket.create_connection(listener.getsockname()) as connection:
        assert connection.getpeername() == listener.getsockname()


@pytest.mark.parametrize(
    ("window", "length", "blocks_each"),
    [(None, 1, 1), (None, 16, 1), (None, 17, 2), (None, 160, 10), (32, 160, 3), (32, 33, 3), (32, 32, 2), (33, 160, 4)],
)
def test_how_many_requests_fit_follows_from_blocks(window: int | None, length: int, blocks_each: int) -> None:
    ready = msgspec.structs.replace(READY, window=window, max_model_len=length)  # 100 blocks of 16 tokens
    lines = ready_lines(ready, url="http://h:1", model_id="m", needs_key=False, seconds=1.0)
    assert f"room for {100 // blocks_each:,} requests of {length}" in lines[1]


def test_the_last_lines_are_url_model_id_and_a_request_to_paste() -> None:
    lines = ready_lines(READY, url="http://127.0.0.1:1", model_id="smoe-demo", needs_key=False, seconds=1.0)
    assert len(lines) <= 5
    assert "smoe-demo" in lines[-2]
    assert "http://127.0.0.1:1" in lines[-2]
    assert lines[-1].startswith("curl -N http://127.0.0.1:1/v1/completions")
    assert "Authorization" not in lines[-1]


def test_the_request_to_paste_asks_for_the_key_without_showing_one() -> None:
    lines = ready_lines(READY, url="http://h:1", model_id="m", needs_key=True, seconds=1.0)
    assert "Bearer YOUR_KEY" in lines[-1]


def test_progress_is_at_most_a_line_per_tenth_and_none_when_it_is_quick() -> None:
    now = [0.0]

    def lines(seconds_per_percent: float) -> list[str]:
        stream = io.StringIO()
        report = StartupReport(stream, clock=lambda: now[0])
        for percent in range(101):
            now[0] += seconds_per_percent
            report.progress(EngineStatus("loading", "weights", percent, 100))
        return stream.getvalue().splitlines()

    assert lines(1.0) == [f"weights {tenth}0% of 100 B" for tenth in range(1, 10)]
    assert lines(0.001) == []


@pytest.mark.parametrize(
    ("num_bytes", "text"), [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (2**30, "1 GiB"), (93 * 2**30, "93 GiB")]
)
def test_sizes_are_readable(num_bytes: int, text: str) -> None:
    assert size(num_bytes) == text


@pytest.mark.parametrize(
    ("phase", "ready", "live"),
    [
        ("loading", 503, 200),
        ("ready", 200, 200),
        ("stuck", 503, 503),
        ("restarting", 503, 200),
        ("draining", 503, 200),
        ("dead", 503, 503),
    ],
)
def test_health_says_what_the_engine_can_do(phase: str, ready: int, live: int) -> None:
    status = EngineStatus(phase, "weights", 5, 10, message="/secret/path")  # type: ignore[arg-type]
    for (code, body), expected in ((readiness(status), ready), (liveness(status), live)):
        assert code == expected
        assert (body["phase"], body["loaded_bytes"], body["total_bytes"]) == (phase, 5, 10)
        assert body["status"] == ("ok" if expected == 200 else "unavailable")
        assert "/secret/path" not in str(body)
