"""The fork server: `python -m server.sandbox.process FD PARENT_PID`, with FD the socket to the pool.

It holds what jobs need (modules, prepared objects) and forks a worker for each Fork, which takes milliseconds and
shares that memory. It runs no job itself, has one thread, and outlives neither its socket nor its parent.
"""

import sys

from engine.parent_death import die_with_parent

if __name__ == "__main__":
    die_with_parent(int(sys.argv[2]))  # before the imports below

import contextlib
import ctypes
import gc
import os
import select
import signal
import socket
import time
import traceback

import msgspec

from server.sandbox.messages import (
    MAX_COMMAND_BYTES,
    Call,
    Command,
    Exited,
    Fork,
    Kill,
    Prepare,
    Reply,
    encode_frame,
    read_frame,
)
from server.sandbox.worker import NO_VALUE, run_call, serve_jobs

STDERR = 2
M_ARENA_MAX = -8


class ForkServerProcess:
    """Loop over the pool's commands and the ends of workers."""

    def __init__(self, control: socket.socket) -> None:
        self._control = control
        self._prepared: dict[str, object] = {}
        self._pids: dict[int, int] = {}  # worker id -> process id, until its end is collected
        self._wakeup, wakeup_end = socket.socketpair()
        self._wakeup.setblocking(False)
        wakeup_end.setblocking(False)
        self._wakeup_end = wakeup_end
        signal.set_wakeup_fd(wakeup_end.fileno(), warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda signum, frame: None)

    def run(self) -> None:
        """Serve until the pool closes its end."""
        poll = select.poll()
        poll.register(self._control, select.POLLIN)
        poll.register(self._wakeup, select.POLLIN)
        while True:
            ready = {fd for fd, _ in poll.poll()}
            if self._wakeup.fileno() in ready:
                self._collect_ends()
            if self._control.fileno() in ready and not self._handle_command():
                return

    def _handle_command(self) -> bool:
        """Carry out one command; return False at the end of the socket."""
        frame, fds, _, _ = socket.recv_fds(self._control, MAX_COMMAND_BYTES, 2)
        if not frame:
            return False
        command = msgspec.msgpack.decode(frame, type=Command)
        if isinstance(command, Fork):
            self._fork(command.worker_id, *fds)
        elif isinstance(command, Prepare):
            self._prepare(command.name, *fds)
        elif isinstance(command, Kill) and command.worker_id in self._pids:
            os.kill(self._pids[command.worker_id], signal.SIGKILL)
        return True

    def _fork(self, worker_id: int, stream_fd: int, stderr_fd: int) -> None:
        server_pid = os.getpid()
        try:
            pid = os.fork()
        except OSError:
            self._send(Exited(worker_id, -signal.SIGKILL, 0.0))  # as if the kernel had killed it: memory is short
        else:
            if pid == 0:
                self._become_worker(server_pid, stream_fd, stderr_fd)
            self._pids[worker_id] = pid
        os.close(stream_fd)
        os.close(stderr_fd)

    def _become_worker(self, server_pid: int, stream_fd: int, stderr_fd: int) -> None:
        """Keep nothing of the fork server but its memory; run jobs, and exit."""
        try:
            os.dup2(stderr_fd, STDERR)
            os.close(stderr_fd)
            die_with_parent(server_pid)
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            for held in (self._control, self._wakeup, self._wakeup_end):
                held.close()
            serve_jobs(socket.socket(fileno=stream_fd), self._prepared)
        except BaseException:  # noqa: BLE001 (this copy of the fork server must not run its loop)
            traceback.print_exc()
            os._exit(1)
        os._exit(0)

    def _prepare(self, name: str, stream_fd: int) -> None:
        """Build an object that later workers find under `name`."""
        start_s = time.process_time()
        error: tuple[str, str] | None = None
        with socket.socket(fileno=stream_fd) as stream:
            frame = read_frame(stream)
            if frame is None:
                return
            try:
                self._prepared[name] = run_call(msgspec.msgpack.decode(frame, type=Call), self._prepared)
            except Exception as failure:  # noqa: BLE001 (it is the caller's)
                error = type(failure).__name__, str(failure)
            del frame
            gc.collect()
            gc.freeze()  # collections in workers do not touch these pages, so they stay shared
            stream.sendall(encode_frame(Reply(NO_VALUE, time.process_time() - start_s, error)))

    def _collect_ends(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while self._wakeup.recv(MAX_COMMAND_BYTES):
                pass
        for worker_id, known_pid in list(self._pids.items()):
            pid, status, usage = os.wait4(known_pid, os.WNOHANG)
            if pid:
                del self._pids[worker_id]
                code, cpu_s = os.waitstatus_to_exitcode(status), usage.ru_utime + usage.ru_stime
                self._send(Exited(worker_id, code, cpu_s, usage.ru_maxrss * 1024))

    def _send(self, message: Exited) -> None:
        with contextlib.suppress(OSError):  # the pool is gone; the next read of the socket says so
            self._control.send(msgspec.msgpack.encode(message))


def main() -> None:
    """Run the fork server."""
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, signal.SIG_IGN)  # the API process decides when its children end
    ctypes.CDLL(None).mallopt(M_ARENA_MAX, 1)  # a thread's own arena would reserve 64 MiB of the address space
    gc.freeze()
    ForkServerProcess(socket.socket(fileno=int(sys.argv[1]))).run()


if __name__ == "__main__":
    main()
