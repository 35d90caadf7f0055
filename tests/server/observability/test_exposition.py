"""server/observability/exposition.py: one rendering per second, with the model's name on each sample."""

from collections.abc import Iterable

import pytest
from prometheus_client.metrics_core import Metric

from server.observability.exposition import Exposition
from tests.support.metric_samples import Clock, fresh
from tests.support.servers.fake_engine import FakeEngine
from tests.support.servers.serving import client_of, saying, state_around


@pytest.mark.anyio
async def test_a_scrape_is_rendered_once_a_second_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    num_rendered = 0
    collect = Exposition.collect

    def counted(exposition: Exposition) -> Iterable[Metric]:
        nonlocal num_rendered
        num_rendered += 1
        return collect(exposition)

    monkeypatch.setattr(Exposition, "collect", counted)
    state, clock = state_around(FakeEngine(saying("a"))), Clock()
    state.metrics = fresh(clock=clock)
    async with client_of(state) as client:
        for tick in range(300):  # three seconds
            clock.now = 100 + tick / 100
            await client.get("/metrics")
    assert num_rendered == 3


def test_a_second_scrape_within_a_second_gets_the_same_bytes() -> None:
    clock = Clock()
    metrics = fresh(clock=clock)
    first = metrics.exposition.render()
    metrics.received(1)
    clock.now += 0.99
    assert metrics.exposition.render() is first
    clock.now += 0.02
    assert b'smoe_requests_received_total{model_name="m"} 1.0' in metrics.exposition.render()
