"""Settings of the interpreter that keep the event loop responsive while threads work."""

import gc
import sys

SWITCH_S = 0.001  # a thread that parses or tokenizes holds the interpreter's lock for so long (Python: 5 ms)
FULL_COLLECTION = 200  # collections of the middle generation between two full ones (Python: 10)


def tune_interpreter() -> None:
    """Hand over the interpreter's lock more often, and make full garbage collections rare.

    A full collection stops all threads and visits whatever is alive: 10,000 parsed messages take 30 ms, and allocating
    them caused one with Python's default. Requests leave no cycles behind, so that little waits for the next one.
    """
    sys.setswitchinterval(SWITCH_S)
    first, middle, _ = gc.get_threshold()
    gc.set_threshold(first, middle, FULL_COLLECTION)
