"""server/observability/metric_families.py: the histogram without locks, and outcomes that exist from the start."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import Histogram

from server.observability.metric_families import OUTCOMES, SECONDS, UnlockedHistogram
from tests.support.metric_samples import fresh, samples


def test_every_outcome_is_there_from_the_start() -> None:
    scrape = samples(fresh())
    assert {f"smoe_requests_total{{outcome={outcome}}}" for outcome in OUTCOMES} <= set(scrape)


@given(st.lists(st.tuples(st.floats(0, 700), st.integers(1, 4)), max_size=30))
def test_the_token_histogram_counts_as_prometheus_clients_does(observed: list[tuple[float, int]]) -> None:
    ours = UnlockedHistogram("gap_seconds", "Gaps.", SECONDS)
    theirs = Histogram("gap_seconds", "Gaps.", buckets=SECONDS, registry=None)
    for amount, times in [*observed, (0.01, 1), (600.0, 1)]:  # two of the bounds themselves
        ours.observe(amount, times)
        for _ in range(times):
            theirs.observe(amount)
    samples = [
        {
            (s.name, s.labels.get("le")): s.value
            for f in h.collect()
            for s in f.samples
            if not s.name.endswith("created")
        }
        for h in (ours, theirs)
    ]
    assert samples[0] == pytest.approx(samples[1])
