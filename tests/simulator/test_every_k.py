"""Every kind of fault at its first passage, then its second, until a run ends before the k-th passage."""

import logging
from collections.abc import Iterator

import pytest

from tests.simulator.faults import Point
from tests.simulator.scenarios import EVERY_K, SCENARIOS, Scenario, every_k
from tests.simulator.simulation import Simulation

ONE_ENDS: dict[Point, int] = {"raise for one": 1, "nan": 1, "cancel": 1}  # and the others continue
NOBODY_ENDS: tuple[Point, ...] = ("allocate", "admit", "raise once", "raise at the end")


@pytest.fixture(autouse=True)
def _disable_log() -> Iterator[None]:
    """Disable the engine's log: it would fill with injected faults."""
    log = logging.getLogger("smoe.engine")
    log.disabled = True
    yield
    log.disabled = False


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.name)
def test_at_every_k(scenario: Scenario) -> None:
    undisturbed = scenario.run()
    assert undisturbed.ends["error"] == undisturbed.ends["cancelled"] == 0
    for point in EVERY_K:

        def check(simulation: Simulation, point: Point = point) -> None:
            lost = simulation.ends["error"] + simulation.ends["cancelled"]
            assert lost <= ONE_ENDS.get(point, len(simulation.records))
            if point in NOBODY_ENDS and not _depends_on_time(scenario):
                assert simulation.ends == undisturbed.ends
                assert [record.token_ids for record in simulation.records.values()] == [
                    record.token_ids for record in undisturbed.records.values()
                ]

        assert every_k(scenario, point, check) >= (0 if point == "admit" else 1)


def _depends_on_time(scenario: Scenario) -> bool:
    requests = [request for arrivals in scenario.arrivals.values() for request in arrivals]
    return any("deadline_s" in request or "queue_deadline_s" in request for request in requests)


def test_the_scenarios_reach_what_their_names_say() -> None:
    runs = {scenario.name: scenario.run() for scenario in SCENARIOS}
    assert len(runs) == len(SCENARIOS) == 21
    assert runs["prompts that are embedded beside one that decodes"].seen["embeddings"] == 2
    assert runs["preempted and resumed behind the window"].seen["preemptions"]
    assert runs["one step ahead in a pool too small"].seen["preemptions"]
    assert runs["one step ahead with the persistent batch"].seen["preemptions"]
    assert runs["a prefix that two share"].seen["prefix hits"]
    assert runs["a window passed by three times its length"].seen["window blocks"]
    assert runs["a queue deadline passes"].ends["queue_timeout"]
    assert runs["a deadline passes while a request decodes"].ends["timeout"]
