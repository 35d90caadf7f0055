"""A job for the sandbox: a function by name, its arguments, and its limits."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

T = TypeVar("T")

MAX_REPLY_BYTES = 64 << 20


@dataclass(frozen=True)
class Limits:
    """What one job may use in its process, beyond what the process had before its first job."""

    cpu_s: float = 1.0  # user and system time of all threads
    memory_bytes: int = 224 << 20  # of address space


DEFAULT_LIMITS = Limits()


@dataclass(frozen=True)
class JobUse:
    """What one job has used, for measurements. Of a job that ended its process: what the process used in all."""

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
    limits: Limits = DEFAULT_LIMITS


def name_of(function: Callable[..., Any]) -> str:
    """Return the name by which another process finds the function: "server.chat.rendering:render"."""
    return f"{function.__module__}:{function.__qualname__}"
