"""`smoe run-batch` against a real server: killed at any moment, it answers each line exactly once in the end."""

import asyncio
import json
import random
import subprocess
import sys
from pathlib import Path

from tests.support.conditions import until
from tests.support.servers.running import MODEL, RunningServer

NUM_LINES, NUM_KILLS = 300, 3
WHOLE_S = 300


def write_batch(path: Path, num_lines: int) -> None:
    body = {"model": MODEL, "max_tokens": 2, "temperature": 0, "temprature": 0}
    lines = [
        {"custom_id": f"q{i}", "method": "POST", "url": "/v1/completions", "body": {**body, "prompt": f"{i}"}}
        for i in range(num_lines)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def command(server: RunningServer, folder: Path) -> list[str]:
    flags = ["-o", str(folder / "out"), "--url", server.url, "--concurrency", "16"]
    return [sys.executable, "-m", "server", "run-batch", str(folder / "in"), *flags]


def num_answers(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


def test_a_batch_survives_kills_and_answers_each_line_once(server: RunningServer, tmp_path: Path, scale: int) -> None:
    num_lines = NUM_LINES * scale
    write_batch(tmp_path / "in", num_lines)
    draw = random.Random(7)
    for kill in range(NUM_KILLS):
        enough = draw.randrange(num_lines * kill // (NUM_KILLS + 1), num_lines * (kill + 1) // (NUM_KILLS + 1))
        process = subprocess.Popen(command(server, tmp_path), stderr=subprocess.DEVNULL)
        asyncio.run(until(lambda: num_answers(tmp_path / "out") > enough or process.poll() is not None))  # noqa: B023
        process.kill()
        process.wait()
    done = subprocess.run(command(server, tmp_path), capture_output=True, text=True, timeout=WHOLE_S, check=False)
    assert done.returncode == 0, done.stderr
    answers = [json.loads(line) for line in (tmp_path / "out").read_text().splitlines()]
    assert sorted(answer["custom_id"] for answer in answers) == sorted(f"q{i}" for i in range(num_lines))
    assert {answer["response"]["status_code"] for answer in answers} == {200}
    assert all(answer["response"]["headers"] == {"x-smoe-ignored-params": "temprature"} for answer in answers)
    assert f"{num_lines:,} of {num_lines:,}" in done.stderr


def test_errors_of_the_command_are_one_line(server: RunningServer, tmp_path: Path) -> None:
    (tmp_path / "in").write_text("{\n")
    done = subprocess.run(command(server, tmp_path), capture_output=True, text=True, timeout=WHOLE_S, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"smoe: {tmp_path / 'in'}, line 1: not a JSON object\n"
