"""server/lifecycle/interpreter.py: what happens while a large body is parsed."""

import gc
import json
import sys
from collections import Counter
from collections.abc import Iterator

import pytest

from server.api.request_body import _parsed
from server.lifecycle.interpreter import SWITCH_S, tune_interpreter
from server.schemas import TokenizeRequest

MESSAGES = [{"role": ("user", "assistant")[i % 2], "content": "a"} for i in range(9999)]
BODY = json.dumps({"messages": MESSAGES}).encode()


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    thresholds, interval = gc.get_threshold(), sys.getswitchinterval()
    gc.set_threshold(700, 10, 10)  # Python's; an engine in this process has made full collections rare
    gc.collect()
    gc.freeze()  # as the server does when it is ready
    gc.collect()  # the number of survivors, which decides about the next one, is that of the server: small
    yield
    gc.unfreeze()
    gc.set_threshold(*thresholds)
    sys.setswitchinterval(interval)


def collections_while_parsing(num_bodies: int) -> Counter[int]:
    """Return the number of collections of each generation."""
    seen: Counter[int] = Counter()

    def note(phase: str, details: dict[str, int]) -> None:
        seen[details["generation"]] += phase == "start"

    gc.callbacks.append(note)
    try:
        for _ in range(num_bodies):
            _parsed(BODY, TokenizeRequest, None)
    finally:
        gc.callbacks.remove(note)
    return seen


def test_large_bodies_cause_hardly_any_full_garbage_collection() -> None:
    before = collections_while_parsing(8)
    tune_interpreter()
    gc.collect()
    after = collections_while_parsing(8)
    assert before[2] > after[2] == 0, f"with Python's settings there is one for each body: {before}, {after}"
    assert after[0] > 0, "young objects are collected as before"


def test_threads_hand_over_the_lock_each_millisecond() -> None:
    tune_interpreter()
    assert sys.getswitchinterval() == pytest.approx(SWITCH_S)
