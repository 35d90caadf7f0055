"""Standard input, output and error of a process that was started without some of them, or whose output is lost."""

import contextlib
import errno
import os
import sys

STDIN, STDOUT, STDERR = 0, 1, 2


def open_closed_streams() -> None:
    """Open /dev/null for those of the descriptors 0, 1 and 2 that are closed, and for their Python streams.

    Otherwise the next file or socket gets such a descriptor, and what is printed is written into it.
    """
    while (fd := os.open(os.devnull, os.O_RDWR)) <= STDERR:
        os.set_inheritable(fd, True)
    os.close(fd)
    sys.stdin = sys.stdin or open(STDIN, closefd=False)  # noqa: SIM115
    sys.stdout = sys.stdout or open(STDOUT, "w", closefd=False)  # noqa: SIM115
    sys.stderr = sys.stderr or open(STDERR, "w", closefd=False)  # noqa: SIM115


def is_output_lost(*, after_error: bool = False) -> bool:
    """Flush standard output; if that fails, say why on standard error and discard what is left.

    A reader that has left, as `head` does, is not worth a line. `after_error`: try with an empty line, too. Without a
    buffer (PYTHONUNBUFFERED) nothing is left to flush after a write that failed.
    """
    try:
        sys.stdout.write("\n" if after_error and getattr(sys.stdout, "write_through", False) else "")
        sys.stdout.flush()
    except OSError as error:
        with open(os.devnull, "wb") as discarded:
            os.dup2(discarded.fileno(), STDOUT)  # the interpreter flushes once more at its end
        if error.errno != errno.EPIPE:
            with contextlib.suppress(OSError):
                sys.stderr.write(f"smoe: standard output: {error.strerror}\n")
        return True
    return False
