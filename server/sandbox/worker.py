"""A sandbox process: runs one job after another, each under its limits, until its socket is closed."""

import contextlib
import importlib
import math
import resource
import signal
import socket
import time
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from server.sandbox.job import MAX_REPLY_BYTES
from server.sandbox.messages import Call, Reply, encode_frame, read_frame

NO_VALUE = msgspec.Raw(msgspec.msgpack.encode(None))
RETIRE_PART = 4  # a process that has grown by a 4th of a job's memory ends, so that growth does not add up
OUT_OF_MEMORY = "MemoryError"
MAX_MESSAGE_CHARS = 4000


def serve_jobs(stream: socket.socket, prepared: Mapping[str, object]) -> None:
    """Run the jobs that arrive. Call this once, in a process of its own: it limits the process."""
    for limit in (resource.RLIMIT_CORE, resource.RLIMIT_FSIZE):
        resource.setrlimit(limit, (0, 0))
    _volunteer_for_the_oom_killer()
    base_bytes = address_space_bytes()
    while (frame := read_frame(stream)) is not None:
        call = msgspec.msgpack.decode(frame, type=Call)
        reply = _run_limited(call, prepared, base_bytes)
        has_grown = address_space_bytes() - base_bytes > call.memory_bytes // RETIRE_PART
        if has_grown or (reply.error and reply.error[0] == OUT_OF_MEMORY):
            reply = msgspec.structs.replace(reply, retires=True)
        stream.sendall(encode_frame(reply))
        if reply.retires:
            return


def run_call(call: Call, prepared: Mapping[str, object]) -> object:
    """Call the function that a message names, with the prepared object first if it names one."""
    function = find_function(call.function)
    return function(*([prepared[call.prepared]] if call.prepared else []), *call.args)


def find_function(name: str) -> Callable[..., Any]:
    """Return the function of this name: "module:function"."""
    module, _, function = name.partition(":")
    found: Callable[..., Any] = getattr(importlib.import_module(module), function)
    return found


def address_space_bytes() -> int:
    """Return the size of this process' address space, which RLIMIT_AS limits."""
    with open("/proc/self/statm", "rb") as file:
        return int(file.read().split()[0]) * resource.getpagesize()


def _run_limited(call: Call, prepared: Mapping[str, object], base_bytes: int) -> Reply:
    """Run a call under its limits. Beyond its CPU time the kernel ends the process by SIGPROF."""
    start_s = time.process_time()
    _limit_cpu(call.cpu_s, start_s)
    _limit_memory(base_bytes + call.memory_bytes)
    error: tuple[str, str] | None = None
    value = b""
    try:
        value = msgspec.msgpack.encode(run_call(call, prepared))
    except MemoryError:
        error = OUT_OF_MEMORY, "beyond the limit"
    except BaseException as failure:  # noqa: BLE001 (a panic of a Rust library is not an Exception)
        error = type(failure).__name__, str(failure)[:MAX_MESSAGE_CHARS]
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        _limit_memory(resource.RLIM_INFINITY)
    if len(value) > MAX_REPLY_BYTES:
        error, value = ("ValueError", "the result is beyond the limit"), b""
    max_rss_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    raw = msgspec.Raw(value) if value else NO_VALUE
    return Reply(raw, time.process_time() - start_s, error, max_rss_bytes=max_rss_bytes)


def _limit_cpu(cpu_s: float, used_s: float) -> None:
    """Arm the timer on CPU time, which is exact, and RLIMIT_CPU behind it, which counts in seconds."""
    signal.setitimer(signal.ITIMER_PROF, cpu_s)
    hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
    resource.setrlimit(resource.RLIMIT_CPU, (math.ceil(used_s + cpu_s) + 1, hard))


def _limit_memory(num_bytes: int) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (num_bytes, resource.getrlimit(resource.RLIMIT_AS)[1]))


def _volunteer_for_the_oom_killer() -> None:
    """Let the kernel end this process before any other when memory is short: a job can be run again."""
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
        file.write("1000")
