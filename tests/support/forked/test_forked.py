"""A forked process is as if subprocess had started it; a forked server launches its processes as its children."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from tests.support.checkpoints.tokenizer_only import write_tokenizer
from tests.support.forked.commands import popen, run
from tests.support.paths import ROOT
from tests.support.servers.child_processes import engine_pid_of, sandbox_pids_of
from tests.support.servers.server_process import forked

TIMEOUT_S = 60
REPORT = """
import json, os, sys
lines = [line for line in open("/proc/self/status") if line.startswith(("SigBlk", "SigIgn", "SigCgt"))]
json.dump({
    "words": sys.argv, "name": __name__, "path": sys.path[0], "input": sys.stdin.read(), "signals": lines,
    "folder": os.getcwd(), "environment": sorted(os.environ.items()), "fds": sorted(os.listdir("/proc/self/fd")),
    "parent": os.getppid(), "is_leader": os.getsid(0) == os.getpid(), "group": os.getpgid(0) - os.getsid(0),
}, sys.stdout)
print("to stderr", file=sys.stderr)
sys.exit(int(sys.argv[1]))
"""


@pytest.fixture
def script(tmp_path: Path) -> str:
    path = tmp_path / "report.py"
    path.write_text(REPORT)
    return str(path)


@pytest.mark.parametrize("code", [0, 3])
@pytest.mark.parametrize("has_own_session", [False, True])
def test_a_forked_process_has_all_that_a_started_one_has(
    script: str, tmp_path: Path, code: int, has_own_session: bool
) -> None:
    command = [sys.executable, script, str(code), "a word"]
    reader, writer = os.pipe()
    options = {"env": {"A": "é", "PYTHONPATH": str(ROOT), "LC_ALL": "C.UTF-8"}, "cwd": tmp_path, "pass_fds": [writer]}
    options["start_new_session"] = has_own_session
    expected = subprocess.run(command, input="typed", capture_output=True, text=True, **options)  # type: ignore[call-overload]
    found = run(command, input="typed", **options)
    os.close(reader)
    os.close(writer)
    assert (found.returncode, found.stderr) == (code, "to stderr\n")
    assert json.loads(found.stdout) == json.loads(expected.stdout)
    assert json.loads(found.stdout)["parent"] == os.getpid()


def test_a_module_is_run_as_the_interpreter_runs_it(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "server", "--version"]
    expected = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    assert (run(command).stdout, run(command).stderr) == (expected.stdout, "")


def test_a_signal_ends_a_forked_process_and_its_number_is_the_exit_code(tmp_path: Path) -> None:
    (tmp_path / "pause.py").write_text("import signal\nprint('ready', flush=True)\nsignal.pause()\n")
    process = popen([sys.executable, str(tmp_path / "pause.py")], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    assert process.poll() is None and psutil.Process(process.pid).ppid() == os.getpid()
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0)
    process.terminate()
    assert process.wait(TIMEOUT_S) == -signal.SIGTERM
    process.stdout.close()


def test_threads_may_start_processes_at_once(tmp_path: Path) -> None:
    (tmp_path / "code.py").write_text("import sys\nsys.exit(int(sys.argv[1]))\n")

    def code_of(number: int) -> int:
        return run([sys.executable, str(tmp_path / "code.py"), str(number)]).returncode

    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(code_of, range(20))) == list(range(20))


def test_a_forked_server_is_the_parent_of_its_engine_and_its_sandbox_which_end_with_it(tmp_path: Path) -> None:
    write_tokenizer(tmp_path)
    with forked("count", tmp_path) as server:
        server.wait_ready()
        engine, sandbox = engine_pid_of(server.process.pid), sandbox_pids_of(server.process.pid)
        assert set(_children(server.process.pid)) == {engine, sandbox[0]} and len(sandbox) > 1
        assert all(os.getsid(pid) == pid for pid in (engine, sandbox[0]))
        family = psutil.Process(server.process.pid).children(recursive=True)
        server.process.kill()
        server.process.wait(TIMEOUT_S)
        assert psutil.wait_procs(family, TIMEOUT_S)[1] == []


def test_a_server_that_starts_no_engine_leaves_no_process(tmp_path: Path) -> None:
    run([sys.executable, "-m", "server", "--version"])  # the fork server is started
    before = set(_children(os.getpid()))
    ended = run([sys.executable, "-m", "server", "serve", str(tmp_path / "none"), "--port", "0"], timeout=TIMEOUT_S)
    assert ended.returncode == 2 and "no such file" in ended.stderr
    assert set(_children(os.getpid())) == before


def _children(pid: int) -> Sequence[int]:
    return [child.pid for child in psutil.Process(pid).children()]
