"""Random schedules over the product's engine loop. For more of them: python -m tests.simulator --seeds N"""

import pytest

import engine.scheduling.sequence
from tests.simulator.__main__ import run_seeds
from tests.simulator.bugs import MUTATIONS
from tests.simulator.faults import POINTS
from tests.simulator.mutations import applied
from tests.simulator.schedule import ViolationError, run_seed

NUM_PARTS = 4  # so that a slow machine shows progress


@pytest.mark.parametrize("part", range(NUM_PARTS))
def test_whatever_fails_the_others_get_their_tokens_and_nothing_is_lost(part: int, scale: int) -> None:
    count = 1000 * scale // NUM_PARTS
    census, violations = run_seeds(range(part, NUM_PARTS * count, NUM_PARTS))
    assert not violations, violations[0]
    assert census["schedules"] == count
    required = (
        "preemptions",
        "prefix hits",
        "window blocks",
        "embeddings",
        "accepted drafted tokens",
        "prompts cut by a share",
        *(f"fault: {point}" for point in POINTS),
    )
    missing = [name for name in required if not census[name]]
    assert not missing, f"the schedules never reached: {missing}"


def test_the_same_seed_gives_the_same_history() -> None:
    first, again = ([run_seed(seed).log_hash for seed in range(20)] for _ in range(2))
    assert first == again
    assert len(set(first)) == 20


def test_a_violation_is_one_line_that_shows_it_again() -> None:
    [bug] = [mutation for mutation in MUTATIONS if mutation.name == "a block is not freed on cancel"]
    with applied(bug):
        lines = [_line(2), _line(2)]
    assert lines[0] == lines[1]
    assert lines[0].startswith("python -m tests.simulator --seed 2  # log ") and "\n" not in lines[0]
    assert ", commit " in lines[0]
    assert run_seed(2).log_hash not in lines[0], "the log was meant to end early"


def _line(seed: int) -> str:
    with pytest.raises(ViolationError) as raised:
        run_seed(seed)
    return str(raised.value)


def test_the_simulator_leaves_the_product_as_it_was() -> None:
    before = engine.scheduling.sequence.child_hash
    for seed in range(10):
        run_seed(seed)
    assert engine.scheduling.sequence.child_hash is before
