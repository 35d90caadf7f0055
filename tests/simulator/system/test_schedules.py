"""Random schedules of the whole system. For more of them: python -m tests.simulator.system --seeds N --start S"""

import pytest

import engine.process
import server.engine_client.supervisor
from tests.simulator.mutations import applied
from tests.simulator.system.__main__ import run_seeds
from tests.simulator.system.bugs import SYSTEM_BUGS
from tests.simulator.system.schedule import run_seed

NUM_PARTS = 4  # so that a slow machine shows progress
REQUIRED = (
    "fault: kill",
    "fault: stop",
    "fault: drain",
    "fault: shut down",
    "fault: a rank dies at a gather",
    "ended by the end of a rank",
    "ended by a crash while loading",
    "ended by a cut message",
    "ended by a grammar that crashes",
    "ended by a request that crashes steps",
    "experts answered",
    "experts refused",
    "refusal: queue_full",
    "refusal: engine_dead",
    "request: error",
    "request: gone",
    "request: left",
    "request: length",
    "request: stop",
)


@pytest.mark.parametrize("part", range(NUM_PARTS))
def test_every_request_ends_once_as_its_history_allows_and_nothing_is_left(part: int, scale: int) -> None:
    count = 1000 * scale // NUM_PARTS
    census, violations = run_seeds(range(part * count, (part + 1) * count))
    assert not violations, violations[0]
    assert census["schedules"] == count
    missing = [name for name in REQUIRED if not census[name]]
    assert not missing, f"the schedules never reached: {missing}"


def test_the_same_seed_gives_the_same_history() -> None:
    first, again = ([run_seed(seed).truth.history for seed in range(20)] for _ in range(2))
    assert first == again
    assert len(set(map(tuple, first))) == 20


def test_a_violation_shows_the_command_that_repeats_it_and_the_history() -> None:
    [bug] = [mutation for mutation in SYSTEM_BUGS if mutation.name == "a lost request waits for ever"]
    with applied(bug):
        _, [message, *_] = run_seeds(range(50))
    lines = message.splitlines()
    assert lines[0].startswith("python -m tests.simulator.system --start ") and lines[0].endswith(" --seeds 1")
    assert "got no end" in lines[1]
    assert "history:" in lines and any(" ends: " in line for line in lines)


def test_the_simulator_leaves_the_product_as_it_was() -> None:
    modules = engine.process, server.engine_client.supervisor
    before = [dict(vars(module)) for module in modules]
    run_seed(0)
    assert [dict(vars(module)) for module in modules] == before
