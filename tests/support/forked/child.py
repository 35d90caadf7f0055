"""Turn a forked process into the one that a start describes, and run its program."""

import atexit
import contextlib
import fcntl
import os
import runpy
import sys
import threading
from pathlib import Path
from typing import NoReturn

from tests.support.forked.messages import Start

FREE_FD = 500  # above the descriptors of any start
MAX_NAME = 15  # of a process, in characters


def become(start: Start, fds: list[int]) -> None:
    """Take on what exec would have given the process. All other descriptors are closed."""
    spare = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, FREE_FD) for fd in fds]
    os.closerange(3, FREE_FD)
    for fd, target in zip(spare, start.targets, strict=True):
        os.dup2(fd, target)
        os.close(fd)
    if start.has_own_session:
        os.setsid()
    os.chdir(start.folder)
    os.environ.clear()
    os.environ.update(start.environment)


def run_program(words: list[str]) -> NoReturn:
    """Run `-m MODULE ARGUMENTS` or `[-P] SCRIPT ARGUMENTS` as the interpreter does, and exit.

    Threads are awaited, functions for the exit called and streams written, but no object is freed: to free those of
    all modules takes longer than most commands.
    """
    code = 1
    try:
        code = _exit_code(words)
    except BaseException:  # noqa: BLE001 (as the interpreter does)
        sys.excepthook(*sys.exc_info())  # type: ignore[arg-type]
    with contextlib.suppress(BaseException):
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)


def _exit_code(words: list[str]) -> int:
    try:
        _run(words)
    except SystemExit as end:
        if end.code is None or isinstance(end.code, int):
            return end.code or 0
        sys.stderr.write(f"{end.code}\n")
        return 1
    return 0


def _run(words: list[str]) -> None:
    sys.orig_argv = [sys.executable, *words]
    is_module = words[0] == "-m"
    name, *arguments = words[1:] if words[0] in ("-m", "-P") else words
    sys.argv = [name, *arguments]
    Path("/proc/self/comm").write_text(name.rpartition("/")[2][:MAX_NAME])  # the command line stays the fork server's
    sys.path[0] = os.getcwd() if is_module else os.path.dirname(name)
    if is_module:
        sys.modules.pop(name, None)  # runpy warns of a module that is imported already
        runpy.run_module(name, run_name="__main__", alter_sys=True)
    else:
        runpy.run_path(name, run_name="__main__")
