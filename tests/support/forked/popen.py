"""subprocess.Popen whose process is forked."""

import os
import subprocess
from collections.abc import Callable, Sequence
from typing import Any

from tests.support.forked.messages import Start

Fork = Callable[[Start, list[int]], int]


class ForkedPopen(subprocess.Popen[Any]):
    """A child of this process that `fork` makes. It takes the options of subprocess.Popen that describe a start."""

    def __init__(self, command: Sequence[str], fork: Fork, **options: Any) -> None:
        """`fork` receives the start and the descriptors for it, and returns the id of a child of this process."""
        self._fork = fork
        super().__init__(command, **options)

    def _execute_child(  # instead of fork and exec
        self,
        args: Sequence[str],
        executable: None,
        preexec_fn: None,
        close_fds: bool,
        pass_fds: Sequence[int],
        cwd: str | os.PathLike[str] | None,
        env: dict[str, str] | None,
        startupinfo: None,
        creationflags: int,
        shell: bool,
        p2cread: int,
        p2cwrite: int,
        c2pread: int,
        c2pwrite: int,
        errread: int,
        errwrite: int,
        restore_signals: bool,
        gid: None,
        gids: None,
        uid: None,
        umask: int,
        start_new_session: bool,
        *others: Any,
    ) -> None:
        assert executable is preexec_fn is gid is gids is uid is None and not shell and close_fds and umask < 0
        streams = [number if fd < 0 else fd for number, fd in enumerate((p2cread, c2pwrite, errwrite))]
        start = Start(
            words=[os.fspath(word) for word in args[1:]],
            environment=dict(os.environ if env is None else env),
            folder=os.getcwd() if cwd is None else os.fspath(cwd),
            targets=[0, 1, 2, *pass_fds],
            has_own_session=bool(start_new_session),
        )
        self.pid = self._fork(start, [*streams, *pass_fds])
        self._child_created = True
        self._close_pipe_fds(p2cread, p2cwrite, c2pread, c2pwrite, errread, errwrite)  # type: ignore[attr-defined]
