"""Six runs in which every pair of up to ten features occurs in every combination of on and off."""

import itertools
from collections.abc import Sequence

NUM_RUNS = 6


def chosen(run: int, features: Sequence[str]) -> frozenset[str]:
    """Return the features of a run, 0 to 5: none in run 0, each in three of the others (Kleitman and Spencer, 1973)."""
    triples = itertools.combinations(range(1, NUM_RUNS), 3)  # any two of ten share a run, and each has one alone
    return frozenset(feature for feature, triple in zip(features, triples, strict=False) if run in triple)


def assert_all_pairs(features: Sequence[str]) -> None:
    """Check that the runs have every pair of the features in every combination."""
    runs = [chosen(run, features) for run in range(NUM_RUNS)]
    for one, other in itertools.combinations(features, 2):
        assert {(one in run, other in run) for run in runs} == set(itertools.product((False, True), repeat=2))
