"""Errors that end a start."""


class StartError(Exception):
    """The server cannot start. One line; the process exits with `exit_code`."""

    def __init__(self, message: str, exit_code: int = 2) -> None:
        """`exit_code`: 2 for settings or a checkpoint that cannot work, 1 if the system refuses something."""
        super().__init__(message)
        self.exit_code = exit_code


def process_error(error: OSError) -> str:
    """Return in one line which program could not be started, and why; the system does not always name one."""
    return f"cannot start {error.filename or 'a process'}: {error.strerror}"
