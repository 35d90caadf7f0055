"""Free ports of the loopback interface."""

import itertools
import os
import random
import socket
from collections import deque

NUM_SHARES = 64  # processes of a parallel test run that never get each other's ports
RANGE = range(16_000, 32_000, NUM_SHARES)  # the system takes ports of outgoing connections from 32768 on
_given: deque[int] = deque(maxlen=len(RANGE) // 2)  # the last ones: their servers may not listen yet


def free_port() -> int:
    """Return a port that nothing listens on, that was not given lately, and that no outgoing connection and no other
    worker of this run takes."""
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", f"gw{NUM_SHARES - 1}").removeprefix("gw"))
    for _ in itertools.repeat(None, 1000):
        port = random.SystemRandom().choice(RANGE) + worker % NUM_SHARES
        if port in _given:
            continue
        try:
            socket.create_server(("127.0.0.1", port)).close()
        except OSError:
            continue
        _given.append(port)
        return port
    raise AssertionError("no port is free")
