"""Start and end of the server: one line on errors, streams finish after SIGTERM, exit code 0."""

import json
import shutil
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from tests.support.forked.commands import run
from tests.support.paths import DEMO
from tests.support.ports import free_port
from tests.support.servers.running import MODEL, STOP_TIMEOUT_S, start_server

CHECKPOINT_FILES = (
    "config.json", "generation_config.json", "tokenizer_config.json", "tokenizer.model", "model.safetensors"
)  # fmt: skip


def test_at_sigterm_running_streams_finish_and_new_requests_get_a_503_with_retry_after() -> None:
    """One stream has begun; the other is queued while the engine is stopped, so that the server must wait for it."""
    with start_server("--dtype", "float32", "--threads", "1") as server, ThreadPoolExecutor() as readers:
        started = threading.Event()
        body = {"model": MODEL, "prompt": "It was", "max_tokens": 1500, "ignore_eos": True, "stream": True}

        def read() -> list[str]:
            lines = []
            with httpx.stream("POST", server.url + "/v1/completions", json=body, timeout=120) as reply:
                for line in reply.iter_lines():
                    lines.append(line)
                    started.set()
            return lines

        streams = [readers.submit(read)]
        assert started.wait(60)
        with httpx.Client(base_url=server.url, timeout=30) as client, server.engine_stopped():
            streams.append(readers.submit(read))
            while not client.get("/load").json()["waiting"]:
                assert not streams[1].done()
            assert client.get("/health/live").status_code == 200  # this connection stays open
            server.sigterm()
            while (ready := client.get("/health/ready")).status_code == 200:
                assert server.process.poll() is None
            assert ready.status_code == 503
            refused = client.post("/v1/completions", json=body)
            assert refused.status_code == 503 and int(refused.headers["retry-after"]) > 0
            assert client.get("/health/live").status_code == 200
        for lines in [stream.result(120) for stream in streams]:
            assert [line for line in lines if line][-1] == "data: [DONE]"
            finish = [json.loads(line[6:]) for line in lines if line.startswith("data: {")][-1]
            assert finish["choices"][0]["finish_reason"] == "length"


def test_the_start_is_at_most_15_lines_and_ends_with_a_command_to_paste() -> None:
    with start_server("--threads", "1") as server:
        server.sigterm()
        server.process.wait(STOP_TIMEOUT_S)  # a thread writes the lines; it has finished now
        lines = [line for line in server.log.read_text().splitlines() if "the event loop was blocked" not in line]
        assert len(lines) <= 15
        assert server.url in lines[-2] and MODEL in lines[-2]
        assert lines[-1].startswith("curl ") and server.url in lines[-1]


def drop_last_byte(path: Path) -> str:
    weights = path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    return "model.safetensors"


def drop_weights(path: Path) -> str:
    (path / "model.safetensors").unlink()
    return str(path)


def pickle_weights(path: Path) -> str:
    (path / "model.safetensors").write_bytes(b"\x80\x04\x95" + b"x" * 100)
    return "model.safetensors"


def widen(path: Path) -> str:
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | {"intermediate_size": 400}))
    return "384"


def no_theta(path: Path) -> str:
    config = json.loads((path / "config.json").read_text())
    del config["rope_theta"]
    (path / "config.json").write_text(json.dumps(config))
    return "rope_theta"


def other_architecture(path: Path) -> str:
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | {"architectures": ["LlamaForCausalLM"]}))
    return "LlamaForCausalLM"


def missing_shard(path: Path) -> str:
    (path / "model.safetensors").unlink()
    index = {"weight_map": {"lm_head.weight": "model-00001-of-00002.safetensors"}}
    (path / "model.safetensors.index.json").write_text(json.dumps(index))
    return "model-00001-of-00002.safetensors"


def no_tokenizer(path: Path) -> str:
    (path / "tokenizer.model").unlink()
    return "tokenizer"


@pytest.mark.parametrize(
    "spoil",
    [drop_last_byte, drop_weights, pickle_weights, widen, no_theta, other_architecture, missing_shard, no_tokenizer],
)
def test_a_bad_checkpoint_ends_the_start_with_one_line_that_names_the_cause(
    tmp_path: Path, spoil: Callable[[Path], str]
) -> None:
    path = tmp_path / "checkpoint"
    path.mkdir()
    for name in CHECKPOINT_FILES:
        shutil.copy(DEMO / name, path)
    culprit = spoil(path)
    command = [sys.executable, "-m", "server", "serve", str(path), "--port", str(free_port())]
    ended = run(command, timeout=60)
    assert ended.returncode == 2, ended.stderr
    assert "Traceback" not in ended.stderr
    last = ended.stderr.strip().splitlines()[-1]
    assert culprit in last, ended.stderr
