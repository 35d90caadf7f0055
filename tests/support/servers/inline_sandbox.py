"""Sandbox without processes: runs jobs in the test's own, for tests of what uses a sandbox."""

from collections.abc import Callable
from functools import lru_cache
from typing import Any, TypeVar

import msgspec

from server.sandbox.errors import JobFailed, SandboxError
from server.sandbox.job import Job

T = TypeVar("T")


class InlineSandbox:
    """Runs each job at once, with its arguments and its result encoded as on the way to a process and back."""

    def __init__(self) -> None:
        self.tenants: list[int] = []  # of the jobs that were run
        self.failures: list[SandboxError] = []  # that the next jobs raise, instead of being run
        self._prepared: dict[str, object] = {}

    async def prepare(self, name: str, function: Callable[..., object], *args: Any) -> None:
        self._prepared[name] = _made(function, msgspec.msgpack.encode(args))

    async def run(self, job: Job[T], *, deadline_s: float = 0.0, tenant: int = 0) -> T:
        self.tenants.append(tenant)
        if self.failures:
            raise self.failures.pop(0)
        args = msgspec.msgpack.decode(msgspec.msgpack.encode(job.args))
        try:
            value = job.function(*([self._prepared[job.prepared]] if job.prepared else []), *args)
        except Exception as error:  # noqa: BLE001 (as in a worker)
            raise JobFailed(type(error).__name__, str(error)) from None
        return msgspec.msgpack.decode(msgspec.msgpack.encode(value), type=job.returns)


@lru_cache(maxsize=8)
def _made(function: Callable[..., object], args: bytes) -> object:
    """Make a prepared object, which all sandboxes share as the jobs of a worker do: some take 0.1 s."""
    return function(*msgspec.msgpack.decode(args))
