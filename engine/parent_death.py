"""End this process when its parent ends. Imports little, so that it can run before the imports that take seconds."""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def die_with_parent(parent_pid: int | None = None) -> None:
    """Let the kernel kill this process when its parent ends, even during imports and long steps or while it is stopped.

    The kernel does not report a parent that ended before this call. If the process has another parent than `parent_pid`
    by then, it exits. On systems other than Linux nothing is done: the process ends when it next reads its socket.
    """
    if sys.platform != "linux":
        return
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if parent_pid is not None and os.getppid() != parent_pid:
        sys.exit()
