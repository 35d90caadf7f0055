"""Reasons why a sandboxed job has no result."""


class SandboxError(Exception):
    """A job without a result. The message is one line for the log."""


class RanOutOfMemory(SandboxError):
    """The job needed more memory than its limit. It would again."""


class TookTooLong(SandboxError):
    """The job used up its CPU time, or was not done at its deadline. `is_proven`: by CPU time, so it would again."""

    def __init__(self, message: str, *, is_proven: bool) -> None:
        super().__init__(message)
        self.is_proven = is_proven


class Crashed(SandboxError):
    """The job ended its process: a signal or an exit."""


class Killed(SandboxError):
    """Something else killed the job's process, twice: the kernel for lack of memory, or a person. Proves no fault."""


class JobFailed(SandboxError):
    """The job raised an exception. `kind` is the exception's class."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(f"{kind}: {message}")
        self.kind = kind


class SandboxFull(SandboxError):
    """Too many jobs wait, of all tenants or of this one."""


def is_jobs_fault(end: SandboxError) -> bool:
    """Return whether the job would end like this again: by its limits, or by ending its process."""
    return isinstance(end, RanOutOfMemory | Crashed) or (isinstance(end, TookTooLong) and end.is_proven)
