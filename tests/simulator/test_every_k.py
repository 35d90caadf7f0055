"""Fail the first allocation, then the second, until a run passes without reaching the k-th; and so with every fault."""

import logging
from collections.abc import Iterator

import pytest

from tests.simulator.faults import Point
from tests.simulator.scenarios import EVERY_K, SCENARIOS, Scenario, every_k
from tests.simulator.simulation import Simulation

ONE_ENDS: dict[Point, int] = {"raise for one": 1, "nan": 1, "cancel": 1}  # and the others go on
NOBODY_ENDS: tuple[Point, ...] = ("allocate", "admit", "raise once", "raise at the end")


@pytest.fixture(autouse=True)
def _silence() -> Iterator[None]:
    """What the engine says of faults that are meant."""
    log = logging.getLogger("smoe.engine")
    log.disabled = True
    yield
    log.disabled = False


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.name)
def test_at_every_k(scenario: Scenario) -> None:
    whole = scenario.run()
    assert whole.ends["error"] == whole.ends["cancelled"] == 0
    for point in EVERY_K:

        def check(simulation: Simulation, point: Point = point) -> None:
            lost = simulation.ends["error"] + simulation.ends["cancelled"]
            assert lost <= ONE_ENDS.get(point, len(simulation.told))
            if point in NOBODY_ENDS and not _depends_on_time(scenario):
                assert simulation.ends == whole.ends
                assert [told.token_ids for told in simulation.told.values()] == [
                    told.token_ids for told in whole.told.values()
                ]

        assert every_k(scenario, point, check) >= (0 if point == "admit" else 1)


def _depends_on_time(scenario: Scenario) -> bool:
    requests = [request for arrivals in scenario.arrivals.values() for request in arrivals]
    return any("deadline_s" in request or "queue_deadline_s" in request for request in requests)


def test_there_are_twenty_scenarios_and_they_go_where_they_should() -> None:
    runs = {scenario.name: scenario.run() for scenario in SCENARIOS}
    assert len(runs) == 20
    assert runs["preempted and resumed behind the window"].seen["preemptions"]
    assert runs["one step ahead in a pool too small"].seen["preemptions"]
    assert runs["one step ahead on rows that stay"].seen["preemptions"]
    assert runs["a prefix that two share"].seen["prefix hits"]
    assert runs["a window passed by three times its length"].seen["window blocks"]
    assert runs["one waits, and its time in the queue ends"].ends["queue_timeout"]
    assert runs["one whose time ends while it decodes"].ends["timeout"]
