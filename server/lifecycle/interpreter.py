"""Settings of the interpreter that keep the event loop responsive while threads work."""

import sys

from engine.garbage_collection import make_full_collections_rare

SWITCH_S = 0.001  # a thread that parses or tokenizes holds the interpreter's lock for so long (Python: 5 ms)


def tune_interpreter() -> None:
    """Hand over the interpreter's lock more often, and make full garbage collections rare."""
    sys.setswitchinterval(SWITCH_S)
    make_full_collections_rare()
