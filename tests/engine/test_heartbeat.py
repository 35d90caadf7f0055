"""The heartbeat is one counter for two processes."""

import os

from engine.heartbeat import Heartbeat


def test_both_ends_see_the_same_counter() -> None:
    engine = Heartbeat()
    server = Heartbeat(os.dup(engine.fd))
    assert server.count == 0
    engine.beat()
    engine.beat()
    assert server.count == 2
    engine.close()
    engine.close()
    engine.beat()
    assert server.count == 3, "the memory outlives the descriptor"
    server.close()


def test_the_counter_wraps_around() -> None:
    heartbeat = Heartbeat()
    heartbeat.counter.value = 2**64 - 1
    heartbeat.beat()
    assert heartbeat.count == 0
    heartbeat.close()
