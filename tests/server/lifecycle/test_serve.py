"""server/lifecycle/serve.py as a process with a fake engine: loading, serving, draining, the engine's end."""

import contextlib
import json
import os
import re
import select
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import sentencepiece

from tests.support.paths import FAKE_ENGINE_SERVER, ROOT

LONG = {"model": "m", "prompt": "It was", "max_tokens": 50, "stream": True}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a tokenizer only: the fake engine reads no weights."""
    folder = tmp_path_factory.mktemp("checkpoint")
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["it was a truth universally acknowledged"] * 20),
        model_prefix=str(folder / "tokenizer"),
        vocab_size=290,
        byte_fallback=True,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    return folder


@pytest.fixture
def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


class Server:
    """A running server process."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self.process = process
        self.lines: list[str] = []
        self.url = ""

    def read_until(self, pattern: str) -> str:
        """Return the first line that matches, among all lines until the process ends."""
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.lines.append(line.rstrip("\n"))
            if re.search(pattern, line):
                return line
        raise AssertionError(f"no line matches {pattern}: {self.lines}")

    def wait_ready(self) -> None:
        line = self.read_until(r"^curl ")
        self.url = re.findall(r"http://[^/]+", line)[0]

    def wait_health(self, status: int) -> None:
        """Wait until /health has this status."""
        deadline_s = time.monotonic() + 60
        while time.monotonic() < deadline_s:
            with contextlib.suppress(httpx.TransportError):  # the port is not bound yet
                if httpx.get(f"{self.url}/health").status_code == status:
                    return
            assert self.process.poll() is None
        raise AssertionError(f"/health never answered {status}")

    def stream(self) -> "contextlib.AbstractContextManager[httpx.Response]":
        return httpx.stream("POST", f"{self.url}/v1/completions", json=LONG, timeout=30)

    def exit_code(self) -> int:
        return self.process.wait(30)

    @property
    def engine_pid(self) -> int:
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text()
        (pid,) = children.split()
        return int(pid)


@contextlib.contextmanager
def running(
    mode: str, checkpoint: Path, stderr: int = subprocess.PIPE, closed_streams: str = "", **flags: str
) -> Iterator[Server]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SMOE_")}
    arguments = {"model": str(checkpoint), "port": "0", "served_model_name": "m", **flags}
    command = [sys.executable, str(FAKE_ENGINE_SERVER), mode, *(f"{name}={value}" for name, value in arguments.items())]
    if closed_streams:
        command = ["sh", "-c", 'exec "$@" 0<&- 1>&- 2>&-', "sh", *command]
    process = subprocess.Popen(
        command,
        env={**environment, "PYTHONPATH": str(ROOT)},
        stderr=stderr,
        text=True,
    )
    try:
        yield Server(process)
    finally:
        process.kill()
        process.communicate(timeout=30)


def events(lines: Iterator[str]) -> list[str]:
    return [line.removeprefix("data: ") for line in lines if line.startswith("data: ")]


def test_the_start_is_at_most_15_lines_and_the_last_one_works(checkpoint: Path) -> None:
    with running("count", checkpoint) as server:
        server.wait_ready()
        assert len(server.lines) <= 15
        body = json.loads(re.findall(r"-d '(.*)'", server.lines[-1])[0])
        with httpx.stream("POST", f"{server.url}/v1/completions", json=body) as reply:
            assert reply.status_code == 200
            assert events(reply.iter_lines())[-1] == "[DONE]"


@pytest.mark.parametrize(
    ("flags", "answered", "refused"),
    [
        ({}, ["localhost", "127.0.0.1:1", "[::1]"], ["evil.example", "10.1.2.3"]),
        ({"host": "127.0.0.2", "allowed_hosts": "a.example"}, ["127.0.0.2", "A.example:80"], ["evil.example"]),
        ({"host": "0.0.0.0"}, ["pod.example", "10.1.2.3:8000"], []),
        ({"host": "0.0.0.0", "allowed_hosts": "a.example"}, ["a.example", "localhost"], ["evil.example", "10.1.2.3"]),
        ({"allowed_hosts": "*"}, ["pod.example"], []),
    ],
)
def test_pages_of_other_names_and_origins_get_403(
    checkpoint: Path, flags: dict[str, str], answered: list[str], refused: list[str]
) -> None:
    with running("count", checkpoint, **flags) as server:
        server.wait_ready()
        body = {**LONG, "stream": False}

        def post(host: str, **headers: str) -> int:
            return httpx.post(f"{server.url}/v1/completions", json=body, headers={"host": host, **headers}).status_code

        assert [post(host) for host in answered] == [200] * len(answered)
        assert [post(host) for host in refused] == [403] * len(refused)
        assert post(answered[0], origin=f"http://{answered[0]}") == 200
        assert post(answered[0], origin="http://evil.example") == 403
        assert httpx.get(f"{server.url}/health", headers={"host": "10.1.2.3:8000"}).status_code == 200


def test_keys_of_a_file_open_the_server_and_nothing_else_does(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("# ours\none\ntwo\n")
    with running("count", checkpoint, api_key="zero", api_key_file=str(tmp_path / "keys")) as server:
        server.wait_ready()
        statuses = {
            key: httpx.get(f"{server.url}/v1/models", headers={"authorization": f"Bearer {key}"}).status_code
            for key in ("zero", "one", "two", "# ours", "three")
        }
    assert statuses == {"zero": 200, "one": 200, "two": 200, "# ours": 401, "three": 401}


def test_a_loading_server_answers_503_at_once_and_can_be_stopped(checkpoint: Path, free_port: int) -> None:
    with running("mute", checkpoint, port=str(free_port)) as server:
        server.read_until("loads")
        url = f"http://127.0.0.1:{free_port}"
        ready = httpx.get(f"{url}/health/ready")
        assert (ready.status_code, ready.json()["phase"]) == (503, "loading")
        assert httpx.get(f"{url}/health/live").status_code == 200
        rejected = httpx.post(f"{url}/v1/completions", json=LONG)
        assert rejected.status_code == 503
        assert int(rejected.headers["retry-after"]) <= 120
        server.process.terminate()
        assert server.exit_code() == 0


def test_sigterm_rejects_new_work_lets_streams_end_and_exits_0(checkpoint: Path) -> None:
    with running("hold", checkpoint, shutdown_timeout="30") as server:
        server.wait_ready()
        with server.stream() as reply:
            lines = reply.iter_lines()
            assert next(lines).startswith("data: ")
            server.process.terminate()
            while (ready := httpx.get(f"{server.url}/health/ready")).status_code == 200:
                continue
            assert ready.json()["phase"] == "draining"
            assert httpx.get(f"{server.url}/health/live").status_code == 200
            rejected = httpx.post(f"{server.url}/v1/completions", json=LONG)
            assert (rejected.status_code, rejected.json()["error"]["code"]) == (503, "draining")
            assert "retry-after" in rejected.headers
            assert server.process.poll() is None
        # the last stream is gone, so the server ends long before the timeout
        assert server.exit_code() == 0


def test_a_stream_longer_than_the_timeout_gets_an_error_event(checkpoint: Path) -> None:
    with running("hold", checkpoint, shutdown_timeout="0.2") as server:
        server.wait_ready()
        with server.stream() as reply:
            lines = reply.iter_lines()
            next(lines)
            server.process.terminate()
            last = events(lines)
        assert json.loads(last[-2])["error"]["code"] == "draining"
        assert last[-1] == "[DONE]"
        assert server.exit_code() == 0


def test_a_second_signal_ends_streams_at_once_with_an_error_event(checkpoint: Path) -> None:
    with running("hold", checkpoint, shutdown_timeout="1000") as server:
        server.wait_ready()
        with server.stream() as reply:
            lines = reply.iter_lines()
            next(lines)
            server.process.terminate()
            while httpx.get(f"{server.url}/health/ready").status_code == 200:
                continue
            server.process.send_signal(signal.SIGINT)
            last = events(lines)
        assert "error" in json.loads(last[-2])
        assert last[-1] == "[DONE]"
        assert server.exit_code() == 128 + signal.SIGINT


def test_a_killed_engine_ends_its_streams_with_an_error_event_and_is_replaced(checkpoint: Path) -> None:
    with running("hold", checkpoint) as server:
        server.wait_ready()
        for num_restarts in (1, 2):
            with server.stream() as reply:
                lines = reply.iter_lines()
                next(lines)
                os.kill(server.engine_pid, signal.SIGKILL)
                last = events(lines)
            assert json.loads(last[-2])["error"]["code"] == "engine_dead"
            assert last[-1] == "[DONE]"
            server.wait_health(200)
            metrics = httpx.get(f"{server.url}/metrics").text
            while f'smoe_engine_restarts_total{{model_name="m"}} {num_restarts}.0' not in metrics:
                metrics = httpx.get(f"{server.url}/metrics").text  # the scrape may be a second old
        server.process.terminate()
        assert server.exit_code() == 0


def test_an_engine_that_cannot_be_restarted_ends_the_server(checkpoint: Path, tmp_path: Path) -> None:
    """Health reports the phases until then: not ready, but live while a restart can help."""
    with running(f"then-crash:{tmp_path / 'lived'}", checkpoint, without_delays="yes") as server:
        server.wait_ready()
        os.kill(server.engine_pid, signal.SIGKILL)
        phases = set()
        with contextlib.suppress(httpx.TransportError):  # until the process has ended
            while True:
                ready = httpx.get(f"{server.url}/health")
                phases.add((ready.status_code, ready.json()["phase"]))
        assert phases <= {(200, "ready"), (503, "restarting"), (503, "dead")}
        assert server.exit_code() == 1
        assert "smoe: 6 engine processes in a row failed" in server.read_until("^smoe: ")


def test_during_a_restart_new_requests_get_a_503_with_retry_after(checkpoint: Path, tmp_path: Path) -> None:
    with running(f"then-mute:{tmp_path / 'lived'}", checkpoint) as server:
        server.wait_ready()
        os.kill(server.engine_pid, signal.SIGKILL)
        server.wait_health(503)
        rejected = httpx.post(f"{server.url}/v1/completions", json=LONG)
        assert (rejected.status_code, rejected.json()["error"]["code"]) == (503, "engine_dead")
        assert 0 < int(rejected.headers["retry-after"]) <= 120
        ready, live = httpx.get(f"{server.url}/health/ready"), httpx.get(f"{server.url}/health/live")
        assert (ready.status_code, ready.json()["phase"], live.status_code) == (503, "restarting", 200)
        assert 'smoe_engine_up{model_name="m"} 0.0' in httpx.get(f"{server.url}/metrics").text
        server.process.terminate()
        assert server.exit_code() == 0


def test_a_killed_server_frees_its_port_at_once(checkpoint: Path, free_port: int) -> None:
    """Kill it while it loads and while it streams: another server can then start on the same port."""
    for mode in ("mute", "hold"):
        with running(mode, checkpoint, port=str(free_port)) as server:
            if mode == "mute":
                server.read_until("loads")
            else:
                server.wait_ready()
                with server.stream() as reply:
                    next(reply.iter_lines())
                    server.process.kill()
                    server.process.wait(30)
    with running("count", checkpoint, port=str(free_port)) as server:
        server.wait_ready()


def test_a_port_in_use_is_one_line_and_leaves_the_first_server_alone(checkpoint: Path) -> None:
    with running("count", checkpoint) as first:
        first.wait_ready()
        port = first.url.rpartition(":")[2]
        with running("count", checkpoint, port=port) as second:
            assert second.exit_code() != 0
            assert "--port" in second.read_until("^smoe: ")
        assert httpx.get(f"{first.url}/health").status_code == 200


def test_an_unread_log_blocks_nothing(checkpoint: Path) -> None:
    """The pipe is full from the start and stays full, and the server still serves, restarts, drains and ends."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(writer, bytes(1 << 16))
    os.set_blocking(writer, True)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with running("hold", checkpoint, stderr=writer, port=str(port)) as server:
        server.url = f"http://127.0.0.1:{port}"
        server.wait_health(200)
        with server.stream() as reply:
            lines = reply.iter_lines()
            next(lines)
            os.kill(server.engine_pid, signal.SIGKILL)
            assert events(lines)[-1] == "[DONE]"
        server.wait_health(200)
        server.process.terminate()
        assert server.exit_code() == 0
    os.close(reader)
    os.close(writer)


def test_closed_standard_streams_are_not_mistaken_for_sockets(checkpoint: Path, free_port: int) -> None:
    """Without descriptors 0 to 2, log lines could go to the first client's socket."""
    with running("hold", checkpoint, closed_streams="yes", port=str(free_port)) as server:
        server.url = f"http://127.0.0.1:{free_port}"
        server.wait_health(200)
        with server.stream() as reply:
            lines = reply.iter_lines()
            next(lines)
            os.kill(server.engine_pid, signal.SIGKILL)  # which is logged
            last = events(lines)
        assert last[-1] == "[DONE]" and "error" in json.loads(last[-2])
        server.process.terminate()
        assert server.exit_code() == 0


def test_the_engine_ends_when_its_server_is_killed(checkpoint: Path) -> None:
    with running("hold", checkpoint) as server:
        server.wait_ready()
        pidfd = os.pidfd_open(server.engine_pid)
        server.process.kill()
        server.process.wait(30)
        gone, _, _ = select.select([pidfd], [], [], 5)
        os.close(pidfd)
        assert gone


@pytest.mark.parametrize(
    ("mode", "line", "code"),
    [("fail", "smoe: /ckpt/model.safetensors: truncated", 2), ("crash", "smoe: the engine process is gone", 1)],
)
def test_an_engine_that_cannot_start_ends_the_server_with_the_engines_message(
    checkpoint: Path, mode: str, line: str, code: int
) -> None:
    with running(mode, checkpoint) as server:
        assert server.exit_code() == code
        assert server.process.stderr is not None
        lines = server.process.stderr.read().splitlines()
    assert lines[-1] == line
    assert not any("Traceback" in written for written in lines)


def test_a_checkpoint_without_a_tokenizer_exits_2_with_one_line(tmp_path: Path) -> None:
    with running("count", tmp_path) as server:
        assert server.exit_code() == 2
        assert "no tokenizer" in server.read_until("^smoe: ")


def test_a_tokenizer_that_is_larger_than_the_vocabulary_exits_2(checkpoint: Path, tmp_path: Path) -> None:
    shutil.copy(checkpoint / "tokenizer.model", tmp_path)
    added = {str(4096 + 5): {"content": "<far>", "special": True}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": added}))
    with running("count", tmp_path) as server:
        assert server.exit_code() == 2
        line = server.read_until("^smoe: ")
    assert "4101" in line
    assert "4096" in line


def test_a_bind_to_everywhere_without_a_key_warns(checkpoint: Path) -> None:
    with running("count", checkpoint, host="0.0.0.0") as server:
        assert "--api-key" in server.read_until("^WARNING")


def test_a_finished_request_is_logged_without_its_text(checkpoint: Path) -> None:
    with running("count", checkpoint) as server:
        server.wait_ready()
        with server.stream() as reply:
            reply.read()
        httpx.get(f"{server.url}/health")
        httpx.get(f"{server.url}/metrics")
        server.process.terminate()
        assert server.exit_code() == 0
        assert server.process.stderr is not None
        [line] = server.process.stderr.read().splitlines()
    assert "outcome=length" in line
    assert "generation_tokens=50" in line
    assert "It was" not in line


@pytest.mark.parametrize(("flags", "status"), [({}, 200), ({"strict_roles": "true"}, 400)])
def test_strict_roles_reject_a_conversation_that_is_repaired_otherwise(
    checkpoint: Path, flags: dict[str, str], status: int
) -> None:
    messages = [{"role": "user", "content": "it"}, {"role": "user", "content": "was"}]
    with running("count", checkpoint, **flags) as server:
        server.wait_ready()
        reply = httpx.post(f"{server.url}/v1/chat/completions", json={"model": "m", "messages": messages})
    assert reply.status_code == status
    assert reply.headers.get("x-smoe-repaired") == ("joined-turns" if status == 200 else None)
