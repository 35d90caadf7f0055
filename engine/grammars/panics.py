"""Turn panics of llguidance into errors: in Python a panic is no Exception."""

from collections.abc import Iterator
from contextlib import contextmanager

from engine.errors import GrammarError


@contextmanager
def panics_as_errors() -> Iterator[None]:
    """Turn every error inside this block into a GrammarError."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit, GrammarError):
        raise
    except BaseException as error:
        raise GrammarError(str(error)) from error
