"""Health routes, /version, /load and /metrics."""

import pytest

from server.engine_client.status import Phase
from tests.support.fake_engine import FakeEngine
from tests.support.serving import client_of, saying, state_around

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize(
    ("phase", "ready", "live"),
    [
        ("loading", 503, 200),
        ("ready", 200, 200),
        ("stuck", 503, 503),
        ("restarting", 503, 200),
        ("draining", 503, 200),
        ("dead", 503, 503),
    ],
)
async def test_health_follows_the_engines_phase(phase: Phase, ready: int, live: int) -> None:
    engine = FakeEngine(saying("a"))
    engine.phase = phase
    async with client_of(state_around(engine)) as client:
        for path in ("/health", "/health/ready", "/ping"):
            assert (await client.get(path)).status_code == ready
        assert (await client.get("/health/live")).status_code == live
        assert (await client.get("/version")).json() == {"version": "0"}
        assert (await client.get("/load")).json() == {"server_load": 0, "running": 0, "waiting": 0}
        assert "smoe_requests_received_total" in (await client.get("/metrics")).text
