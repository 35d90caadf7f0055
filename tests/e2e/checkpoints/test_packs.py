"""A served pack whose file is cut: streams end with an error, and the log names the file and the tensor."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from model.checkpoint.pack.header import PAGE_BYTES, WEIGHTS_NAME, read_header
from tests.support.checkpoints.packs import make_pack
from tests.support.conditions import wait_until
from tests.support.forked.commands import popen
from tests.support.paths import DEMO
from tests.support.ports import free_port
from tests.support.servers.running import RunningServer, wait_until_ready

BODY = {"prompt": "It was not", "max_tokens": 2000, "ignore_eos": True, "stream": True, "temperature": 0}


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_pack(DEMO, tmp_path_factory.mktemp("packs") / "demo", quantization="int8")


@contextmanager
def server_of(model: Path, log: Path, *flags: str) -> Iterator[RunningServer]:
    """Start a server and wait until it is ready; kill it at the end, since it may end by itself before."""
    port = free_port()
    command = [sys.executable, "-m", "server", "serve", str(model), "--port", str(port), "--threads", "1", *flags]
    with log.open("wb") as output:
        process = popen(command, stdout=output, stderr=subprocess.STDOUT)
    try:
        running = RunningServer(process, f"http://127.0.0.1:{port}", log)
        wait_until_ready(running)
        yield running
    finally:
        process.kill()
        process.wait()


def events_until_the_end(server: RunningServer, on_first: Callable[[], None]) -> list[dict[str, Any]]:
    """Stream one completion; return its events."""
    events: list[dict[str, Any]] = []
    with httpx.stream("POST", f"{server.url}/v1/completions", json={"model": "served"} | BODY, timeout=60) as reply:
        for line in reply.iter_lines():
            if line.startswith("data: ") and line != "data: [DONE]":
                events.append(json.loads(line[6:]))
                if len(events) == 1:
                    on_first()
    return events


def cut_while_it_streams(server: RunningServer, file: Path, content: bytes, start: int) -> list[dict[str, Any]]:
    """Cut the file to its first `start` bytes during a stream; return the stream's events.

    A stream that ended before the cut does not count: the file is made whole again, and another one is begun.
    """
    events: list[dict[str, Any]] = [{}]
    while "error" not in events[-1]:
        with file.open("r+b") as stream:
            stream.seek(start)
            stream.write(content[start:])
        events = events_until_the_end(server, lambda: os.truncate(file, start))
    return events


def test_a_file_that_is_cut_while_it_is_served_ends_streams_with_an_error_and_is_named(
    packed: Path, tmp_path: Path
) -> None:
    served = Path(shutil.copytree(packed, tmp_path / "served"))
    file, content = served / WEIGHTS_NAME, (packed / WEIGHTS_NAME).read_bytes()
    start = read_header(packed).tensors["layers.1.experts.0"].start
    with server_of(served, tmp_path / "log") as server:
        wait_until(lambda: "(mapped)" in server.log.read_text())
        events = cut_while_it_streams(server, file, content, start)
        reason = f"{file} was cut while it was served, to {start} of {len(content)} bytes"
        wait_until(lambda: f"{reason}: tensor layers.1.experts.0 is lost" in server.log.read_text())
    assert "choices" in events[0]


def test_an_expert_that_is_cut_off_ends_the_engine_with_its_name_and_the_start_line_counts_experts(
    packed: Path, tmp_path: Path
) -> None:
    """Two of 40 experts fit, so that each step reads nearly all that it needs again."""
    served = Path(shutil.copytree(packed, tmp_path / "served"))
    file, tensors = served / WEIGHTS_NAME, read_header(packed).tensors
    size = 2 * -(-tensors["layers.1.experts.0"].num_bytes // PAGE_BYTES) * PAGE_BYTES
    with server_of(served, tmp_path / "log", "--expert-memory", str(size), "--weights-memory", "copy") as server:
        wait_until(lambda: "with 2 of 40 experts (others are read when needed)" in server.log.read_text())
        events = cut_while_it_streams(server, file, file.read_bytes(), tensors["layers.1.experts.0"].start)
        wait_until(lambda: f"{file}: expert " in server.log.read_text())
        assert re.search(
            r": expert \d of layer [1-4] cannot be read at byte \d+, twice: the file", server.log.read_text()
        )
        metrics = httpx.get(f"{server.url}/metrics").text
    assert "error" in events[-1] and "choices" in events[0]
    misses = re.search(r"^smoe_expert_store_misses_total\{.*\} (\S+)$", metrics, re.MULTILINE)
    assert misses and float(misses[1]) > 0
