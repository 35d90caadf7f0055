"""A job for the sandbox: a function by name, its arguments, and its limits."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

T = TypeVar("T")

MAX_REPLY_BYTES = 64 << 20


@dataclass(frozen=True)
class Limits:
    """Bounds of one job in its process, beyond what the process had before its first job."""

    cpu_s: float = 0.9  # user and system time of all threads; with what surrounds a job it stays below 1 s
    memory_bytes: int = 224 << 20  # of address space


DEFAULT_LIMITS = Limits()
MIN_MEMORY_BYTES = 64 << 20  # a grammar at the bounds of server/structured_output/multiples.py takes 39 MiB
SHARE_OF_LIMIT = 16
MAX_WORKERS = 3


def limits_within(memory_limit_bytes: int | None) -> Limits:
    """Return the limits of a job on a machine or in a cgroup with this much memory; None if that is not known."""
    if memory_limit_bytes is None:
        return DEFAULT_LIMITS
    share = max(MIN_MEMORY_BYTES, memory_limit_bytes // SHARE_OF_LIMIT)
    return Limits(memory_bytes=min(DEFAULT_LIMITS.memory_bytes, share))


def num_workers_within(memory_limit_bytes: int | None) -> int:
    """Return how many jobs may run at once: MAX_WORKERS, or fewer where that many at MIN_MEMORY_BYTES would take more
    than a share of the memory for each."""
    if memory_limit_bytes is None:
        return MAX_WORKERS
    fitting = MAX_WORKERS * memory_limit_bytes // SHARE_OF_LIMIT // MIN_MEMORY_BYTES
    return max(1, min(MAX_WORKERS, fitting))


@dataclass(frozen=True)
class JobUse:
    """Time and memory that one job has used, for measurements."""

    function: str
    outcome: str  # "done", or the class of the error
    cpu_s: float
    max_rss_bytes: int  # of its process, with what that had before


@dataclass(frozen=True)
class Job(Generic[T]):
    """One call of a function in a sandbox process.

    `function` is a function of a module, found again by its name. It gets the object named `prepared` first, if there
    is one, then `args`: plain values, as msgpack has them. `returns` is the type of the result, which is checked: a
    msgspec struct or a plain type.
    """

    function: Callable[..., T]
    args: tuple[Any, ...]
    returns: type[T]
    prepared: str | None = None
    limits: Limits | None = None  # None: those of the pool


def name_of(function: Callable[..., Any]) -> str:
    """Return the name by which another process finds the function: "server.chat.rendering:render"."""
    return f"{function.__module__}:{function.__qualname__}"
