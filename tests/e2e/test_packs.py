"""A served pack whose file is cut: streams end with an error, the log names file and tensor, the server does not hang."""

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from model.checkpoint.pack.header import WEIGHTS_NAME, read_header
from tests.support.conditions import wait_until
from tests.support.packs import make_pack
from tests.support.paths import DEMO
from tests.support.ports import free_port
from tests.support.running import RunningServer, wait_until_ready

BODY = {"prompt": "It was not", "max_tokens": 2000, "ignore_eos": True, "stream": True, "temperature": 0}


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_pack(DEMO, tmp_path_factory.mktemp("packs") / "demo", quantization="int8")


@contextmanager
def server_of(model: Path, log: Path) -> Iterator[RunningServer]:
    """Start a server and wait until it is ready; kill it at the end, since it may end by itself before."""
    port = free_port()
    command = [sys.executable, "-m", "server", "serve", str(model), "--port", str(port), "--threads", "1"]
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
    try:
        running = RunningServer(process, f"http://127.0.0.1:{port}", log)
        wait_until_ready(running)
        yield running
    finally:
        process.kill()
        process.wait()


def cut(packed: Path, tensor: str) -> int:
    """Cut the weight file at the beginning of a tensor; return its old size."""
    file = packed / WEIGHTS_NAME
    size, start = file.stat().st_size, read_header(packed).tensors[tensor].start
    with file.open("r+b") as stream:
        stream.truncate(start)
    return size


def test_a_file_that_is_cut_while_it_is_served_ends_streams_with_an_error_and_is_named(
    packed: Path, tmp_path: Path
) -> None:
    served = Path(shutil.copytree(packed, tmp_path / "served"))
    file, size = served / WEIGHTS_NAME, 0
    with server_of(served, tmp_path / "log") as server:
        assert "(mapped)" in server.log.read_text()
        events = []
        with httpx.stream("POST", f"{server.url}/v1/completions", json={"model": "served"} | BODY, timeout=60) as reply:
            for line in reply.iter_lines():
                if line.startswith("data: ") and line != "data: [DONE]":
                    events.append(json.loads(line[6:]))
                    size = size or cut(served, "layers.1.experts.0")
        reason = f"{file} was cut while it was served, to {file.stat().st_size} of {size} bytes"
        wait_until(lambda: f"{reason}: tensor layers.1.experts.0 is lost" in server.log.read_text())
    assert "choices" in events[0] and "error" in events[-1]
