"""server/observability/expert_load.py against sums over a plain list of everything that was added."""

import random
import weakref

import pytest

from server.observability.expert_load import WINDOW_S, ExpertLoad, imbalance


@pytest.mark.parametrize(
    ("tokens", "expected"), [([3, 1, 0, 0], 3.0), ([5, 5], 1.0), ([0, 0, 0], 0.0), ([0, 0, 9], 3.0)]
)
def test_the_imbalance_is_the_busiest_experts_share_of_the_mean(tokens: list[int], expected: float) -> None:
    assert imbalance(tokens) == expected


def test_only_counts_of_the_last_minute_are_summed() -> None:
    draw, now, added = random.Random(3), [0.0], []
    load = ExpertLoad(lambda: now[0])
    for _ in range(300):
        now[0] += draw.uniform(0.0, 3.0)
        counts = [[draw.randint(0, 5) for _ in range(4)] for _ in range(2)]
        load.add(counts)
        added.append((now[0], counts))
        recent = [counts for added_s, counts in added if added_s >= now[0] - WINDOW_S]
        sums = [[sum(counts[layer][expert] for counts in recent) for expert in range(4)] for layer in range(2)]
        assert load.imbalance() == [imbalance(layer) for layer in sums]
    now[0] += 2 * WINDOW_S
    assert load.imbalance() == [0.0, 0.0]


def test_old_counts_are_dropped_even_if_the_imbalance_is_never_read() -> None:
    class Counts(list[list[int]]):
        """Counts that a weak reference can observe."""

    now = [0.0]
    window = ExpertLoad(lambda: now[0])
    old = Counts([[1, 2]])
    watched = weakref.ref(old)
    window.add(old)
    del old
    now[0] = WINDOW_S + 1
    window.add([[0, 3]])
    assert watched() is None
    assert window.imbalance() == [2.0]
