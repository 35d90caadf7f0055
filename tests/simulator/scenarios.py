"""Small fixed scenarios, to be run with one fault at the k-th passage of a point, for every k."""

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from tests.simulator.faults import Point
from tests.simulator.setup import Setup
from tests.simulator.simulation import Simulation

EVERY_K: tuple[Point, ...] = (
    "allocate",
    "admit",
    "raise once",
    "raise for one",
    "raise for all",
    "raise at the end",
    "no memory",
    "nan",
    "cancel",
)


@dataclass(frozen=True)
class Scenario:
    """Requests and the steps before which they arrive: {step: [fields of Simulation.add, ...]}."""

    name: str
    setup: Setup
    arrivals: dict[int, list[dict[str, Any]]] = field(default_factory=dict)

    def run(self, point: Point | None = None, k: int = 0) -> Simulation:
        """Run with a fault at the k-th passage of the point, or without a point with no fault."""
        rng = random.Random(f"{self.name} {point} {k}")
        simulation = Simulation(self.setup, rng, {}, (point, k) if point else None)
        for step in range(max(self.arrivals) + 1):
            for request in self.arrivals.get(step, []):
                simulation.add(**request)
            simulation.step()
        simulation.run()
        return simulation


def every_k(scenario: Scenario, point: Point, check: Callable[[Simulation], None] = lambda _: None) -> int:
    """Run with k = 1, 2, ... until no fault occurs; return the number of runs with a fault."""
    k = 1
    while True:
        simulation = scenario.run(point, k)
        if not simulation.faults.failed[point]:
            return k - 1
        check(simulation)
        k += 1


def _prompt(length: int, seed: int = 0) -> list[int]:
    rng = random.Random(seed)
    return [rng.randrange(97) for _ in range(length)]


def _requests(*lengths: tuple[int, int], **fields: Any) -> list[dict[str, Any]]:
    return [{"prompt": _prompt(n, i), "max_tokens": m, **fields} for i, (n, m) in enumerate(lengths)]


def _pool(num_blocks: int, **fields: Any) -> Setup:
    return replace(Setup(num_blocks=num_blocks, block_size=4, budget=16, max_model_len=60), **fields)


STEM = _prompt(16, 99)

SCENARIOS = [
    Scenario("one request, alone", _pool(8), {0: _requests((9, 6))}),
    Scenario("one that fills the pool exactly", _pool(4), {0: _requests((12, 20))}),
    Scenario("a pool of one block", _pool(1), {0: _requests((2, 9), (3, 9))}),
    Scenario("all need a block at once", _pool(6), {0: _requests((4, 9), (4, 9), (4, 9), (4, 9))}),
    Scenario("two take turns in a pool for one", _pool(5, max_model_len=20), {0: _requests((8, 11), (8, 11))}),
    Scenario(
        "chunks of a long prompt beside one that decodes",
        _pool(16, budget=3),
        {0: _requests((1, 12)), 1: _requests((20, 3))},
    ),
    Scenario("a budget of one position", _pool(8, budget=1), {0: _requests((5, 3), (2, 4))}),
    Scenario(
        "a prefix that two share",
        _pool(12),
        {0: [{"prompt": [*STEM, 1, 2], "max_tokens": 3}], 2: [{"prompt": [*STEM, 3], "max_tokens": 5}]},
    ),
    Scenario(
        "a prefix found again after its end",
        _pool(9),
        {0: [{"prompt": [*STEM, 1], "max_tokens": 2}], 5: [{"prompt": [*STEM, 2], "max_tokens": 9}]},
    ),
    Scenario("a window of W - 1, W and W + 1 positions", _pool(8, window=8), {0: _requests((7, 2), (8, 2), (9, 2))}),
    Scenario(
        "a window passed by three times its length", _pool(8, window=8, max_model_len=60), {0: _requests((25, 20))}
    ),
    Scenario("preempted and resumed behind the window", _pool(5, window=6), {0: _requests((6, 24), (6, 24))}),
    Scenario("a later one goes first", _pool(5), {0: _requests((6, 10)), 2: _requests((6, 10), priority=-1)}),
    Scenario(
        "a queue deadline passes",
        _pool(8, max_num_seqs=1),
        {0: _requests((4, 9)), 1: _requests((4, 4), queue_deadline_s=5.0)},
    ),
    Scenario("a deadline passes while a request decodes", _pool(8), {0: _requests((4, 30), (4, 9), deadline_s=9.0)}),
    Scenario("prompts that are only scored", _pool(8, budget=4), {0: _requests((9, 0), (6, 2))}),
    Scenario(
        "prompts that are embedded beside one that decodes",
        _pool(8, budget=4),
        {0: [{"prompt": _prompt(6), "max_tokens": 4}, *_requests((9, 0), (7, 0), embedding_len=8)]},
    ),
    Scenario("one step ahead", _pool(8, ahead=True), {0: _requests((6, 8), (9, 5)), 3: _requests((3, 3))}),
    Scenario("one step ahead in a pool too small", _pool(6, ahead=True), {0: _requests((6, 9), (6, 9), (6, 9))}),
    Scenario(
        "one step ahead with a grammar and an end token",
        _pool(8, ahead=True, eos=(10, 20, 30, 40, 50, 60)),
        {0: _requests((5, 9), grammar="0"), 1: _requests((6, 9))},
    ),
    Scenario(
        "one step ahead with the persistent batch",
        _pool(6, ahead=True, with_rows=True, window=6),
        {0: _requests((7, 9), (7, 9), (7, 9), expert_routing=True)},
    ),
]


def cases() -> Iterator[tuple[Scenario, Point]]:
    """Yield every scenario with every point."""
    for scenario in SCENARIOS:
        for point in EVERY_K:
            yield scenario, point
