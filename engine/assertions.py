"""Refusal of `python -O`, under which Python skips the assert statements that guard the state of server and engine."""

import sys

NO_ASSERTIONS = "python -O and PYTHONOPTIMIZE remove the program's own checks; start it without them"


def are_assertions_off() -> bool:
    """Return whether this interpreter skips assert statements."""
    return sys.flags.optimize > 0
