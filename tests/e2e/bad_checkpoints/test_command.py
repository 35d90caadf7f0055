"""A few invalid starts of each kind through `smoe serve` itself: exit code 2, one line."""

import os
import shutil
import socket
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.e2e.bad_checkpoints.start import TOKENIZER, TOKENIZER_CONFIG, WEIGHTS
from tests.support.forked.commands import run


def serve(path: Path, *flags: str, **variables: str) -> tuple[int, list[str]]:
    """Run `smoe serve`, which must end by itself; return its exit code and output lines."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SMOE_")} | variables
    command = [sys.executable, "-m", "server", "serve", str(path), *(flags or ("--port", "0"))]
    ended = run(command, env=environment, timeout=120)
    return ended.returncode, (ended.stdout + ended.stderr).splitlines()


@contextmanager
def taken_port() -> Iterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield str(listener.getsockname()[1])


def test_the_command_ends_with_code_2_and_one_line(good: Path, tmp_path: Path) -> None:
    def changed(name: str, file: str, content: bytes) -> Path:
        path = Path(shutil.copytree(good, tmp_path / name))
        (path / file).write_bytes(content)
        return path

    for name in ("empty", "config-only"):
        (tmp_path / name).mkdir()
    (tmp_path / "config-only" / "config.json").write_text("{}")
    free, small_pool = ("--port", "0"), ("--port", "0", "--kv-cache-memory-bytes", "1000", "--threads", "1")
    with taken_port() as port:
        starts: list[tuple[str, tuple[Any, ...], dict[str, str]]] = [
            ("no such file or directory", (tmp_path / "none",), {}),
            ("has no model", (tmp_path / "empty", *free), {}),
            ("no tokenizer", (tmp_path / "config-only", "--host", "0.0.0.0", *free), {}),
            (f"{WEIGHTS} is damaged", (changed("weights", WEIGHTS, b"\x01" * 99), *free), {}),
            (f"{TOKENIZER}", (changed("tokenizer", TOKENIZER, b"\xff" * 99), *free), {}),
            ("template", (changed("template", TOKENIZER_CONFIG, b'{"chat_template": "{{ 1 / 0 }}"}'), *free), {}),
            ("at least", (good, *small_pool), {}),
            ("--write-manifest", (good, *free, "--verify"), {}),
            (f"--port {port}: already in use", (good, "--port", port), {}),
            ("--port: ", (good, "--port", "70000"), {}),
            ("--zebra", (good, "--zebra"), {}),
            ("exclude each other", (good, "--num-kv-blocks", "5", "--kv-cache-memory-bytes", "1GiB"), {}),
            ("enableServiceLinks", (good, "--host", "127.0.0.1"), {"SMOE_PORT": "tcp://10.0.0.1:80"}),
            ("SMOE_MAX_NUM_SEQS: ", (good, "--host", "127.0.0.1"), {"SMOE_MAX_NUM_SEQS": "1 6"}),
            ("same value twice", (good, "--served-model-name", "a", "--served-model-name", "a"), {}),
        ]
        with ThreadPoolExecutor(2) as threads:
            ends = list(threads.map(lambda one: serve(*one[1], **one[2]), starts))
    for (part, _, _), (code, lines) in zip(starts, ends, strict=True):
        assert code == 2, (part, lines)
        assert part in lines[-1] and lines[-1].startswith("smoe: "), lines
        assert not [line for line in lines if "Traceback" in line or line.startswith("serving ")], lines

    warned = [
        part for (part, _, _), (_, lines) in zip(starts, ends, strict=True) if "WARNING: anyone" in " ".join(lines)
    ]
    assert warned == ["no tokenizer"]  # the one that listens everywhere, without a key
