"""server/lifecycle/serve.py as a process with a fake engine: start, settings, log."""

import json
import re
import shutil
import signal
import socket
import threading
from pathlib import Path

import httpx
import pytest

from tests.support.servers.server_process import LONG, events, forked, running
from tests.support.tls import EXPIRED_CERTIFICATE, EXPIRED_KEY


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
    with forked("count", checkpoint, **flags) as server:
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
    with forked("count", checkpoint, api_key="zero", api_key_file=str(tmp_path / "keys")) as server:
        server.wait_ready()
        statuses = {
            key: httpx.get(f"{server.url}/v1/models", headers={"authorization": f"Bearer {key}"}).status_code
            for key in ("zero", "one", "two", "# ours", "three")
        }
    assert statuses == {"zero": 200, "one": 200, "two": 200, "# ours": 401, "three": 401}


def test_a_loading_server_answers_503_at_once_and_can_be_stopped(checkpoint: Path, free_port: int) -> None:
    with forked("mute", checkpoint, port=str(free_port)) as server:
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


def test_a_port_in_use_is_one_line_and_leaves_the_first_server_alone(checkpoint: Path) -> None:
    with forked("count", checkpoint) as first:
        first.wait_ready()
        port = first.url.rpartition(":")[2]
        with forked("count", checkpoint, port=port) as second:
            assert second.exit_code() != 0
            assert "--port" in second.read_until("^smoe: ")
        assert httpx.get(f"{first.url}/health").status_code == 200


@pytest.mark.parametrize(
    ("mode", "line", "code"),
    [("fail", "smoe: /ckpt/model.safetensors: truncated", 2), ("crash", "smoe: the engine process exited with 9", 1)],
)
def test_an_engine_that_cannot_start_ends_the_server_with_the_engines_message(
    checkpoint: Path, mode: str, line: str, code: int
) -> None:
    with forked(mode, checkpoint) as server:
        assert server.exit_code() == code
        assert server.process.stderr is not None
        lines = server.process.stderr.read().splitlines()
    assert lines[-1] == line
    assert not any("Traceback" in written for written in lines)


def test_a_checkpoint_without_a_tokenizer_exits_2_with_one_line(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with forked("count", tmp_path) as server:
        assert server.exit_code() == 2
        assert "no tokenizer" in server.read_until("^smoe: ")


def test_a_tokenizer_that_is_larger_than_the_vocabulary_exits_2(checkpoint: Path, tmp_path: Path) -> None:
    for name in ("tokenizer.model", "config.json"):
        shutil.copy(checkpoint / name, tmp_path)
    added = {str(4096 + 5): {"content": "<far>", "special": True}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": added}))
    with forked("count", tmp_path) as server:
        assert server.exit_code() == 2
        line = server.read_until("^smoe: ")
    assert "4101" in line
    assert "4096" in line


def test_a_bind_to_everywhere_without_a_key_warns(checkpoint: Path) -> None:
    with forked("count", checkpoint, host="0.0.0.0") as server:
        assert "--api-key" in server.read_until("^WARNING")


def handles_signal(pid: int, signum: signal.Signals) -> bool:
    (caught,) = re.findall(r"SigCgt:\s*(\w+)", Path(f"/proc/{pid}/status").read_text())
    return bool(int(caught, 16) >> (signum - 1) & 1)


def test_an_expired_certificate_warns(checkpoint: Path) -> None:
    with forked("count", checkpoint, ssl_certfile=str(EXPIRED_CERTIFICATE), ssl_keyfile=str(EXPIRED_KEY)) as server:
        server.wait_ready()
        assert any(line.startswith("WARNING") and "certificate has expired" in line for line in server.lines)


def test_a_finished_request_is_logged_without_its_text(checkpoint: Path) -> None:
    """With the watch of the event loop, which uses SIGUSR2."""
    with forked("count", checkpoint, watch_event_loop="true") as server:
        server.wait_ready()
        assert handles_signal(server.process.pid, signal.SIGUSR2)
        with server.stream() as reply:
            reply.read()
        httpx.get(f"{server.url}/health")
        httpx.get(f"{server.url}/metrics")
        assert httpx.get(f"{server.url}/no/such/url").status_code == 404
        with socket.create_connection(("127.0.0.1", httpx.URL(server.url).port or 0)) as connection:
            connection.sendall(b"no HTTP\r\n\r\n")
            assert b" 400 " in connection.recv(4096)
        server.process.terminate()
        assert server.exit_code() == 0
        assert server.process.stderr is not None
        lines = [line for line in server.process.stderr.read().splitlines() if "was blocked" not in line]
    line, unknown_url, malformed = lines
    assert "path=/no/such/url status=404" in unknown_url and "status=400 outcome=rejected" in malformed
    assert "outcome=length" in line
    assert "generation_tokens=50" in line
    assert "It was" not in line


@pytest.mark.parametrize(("flags", "status"), [({}, 200), ({"strict_roles": "true"}, 400)])
def test_strict_roles_reject_a_conversation_that_is_repaired_otherwise(
    checkpoint: Path, flags: dict[str, str], status: int
) -> None:
    messages = [{"role": "user", "content": "it"}, {"role": "user", "content": "was"}]
    with forked("count", checkpoint, **flags) as server:
        server.wait_ready()
        reply = httpx.post(f"{server.url}/v1/chat/completions", json={"model": "m", "messages": messages})
    assert reply.status_code == status
    assert reply.headers.get("x-smoe-repaired") == ("joined-turns" if status == 200 else None)


def test_the_throughput_is_logged_while_there_is_load(checkpoint: Path) -> None:
    is_over = threading.Event()

    def send_until_over(url: str) -> None:
        while not is_over.is_set():
            httpx.post(f"{url}/v1/completions", json={**LONG, "stream": False})

    with forked("count", checkpoint, throughput_s="1") as server:
        server.wait_ready()
        thread = threading.Thread(target=send_until_over, args=[server.url])
        thread.start()
        try:
            line = server.read_until(" INFO throughput ")
        finally:
            is_over.set()
            thread.join()
    assert re.search(r"prompt_tokens_per_s=\S+ tokens_per_s=\S+ running=\d+ waiting=\d+ kv_usage=", line)
