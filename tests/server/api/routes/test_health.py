"""Health routes, /version, /load and /metrics."""

import pytest

from engine.types import ExpertReads, StepStats
from server.engine_client.status import Phase
from tests.server.observability.test_health import STATUSES
from tests.support.servers.fake_engine import FakeEngine
from tests.support.servers.serving import check_error, client_of, saying, state_around

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize(("phase", "ready", "live"), STATUSES)
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


async def test_health_says_that_steps_wait_for_the_disk() -> None:
    state = state_around(FakeEngine(saying("a")))
    async with client_of(state) as client:
        assert "note" not in (await client.get("/health")).json()
        state.metrics.record_step(StepStats(step_s=0.1, expert_reads=ExpertReads(1, 9, 900, 0.08)))
        for path in ("/health", "/health/ready", "/ping"):
            reply = await client.get(path)
            assert reply.status_code == 200 and reply.json()["note"].startswith("disk-bound: ")


async def test_the_recent_load_has_a_column_per_figure() -> None:
    state = state_around(FakeEngine(saying("a")))
    async with client_of(state) as client:
        reply = await client.get("/load/recent")
        fine = (await client.get("/load/recent?interval=1&x=1")).json()
        wrong = await client.get("/load/recent?interval=7")
    columns = reply.json()
    assert columns.pop("interval_s") == 5 and fine["interval_s"] == 1
    assert {len(column) for column in columns.values()} == {60}
    assert set(columns) >= {"generated_tokens_per_s", "running", "waiting", "kv_usage", "step_ms", "ttft_p99_ms"}
    assert columns["running"] == [0] * 60 and columns["step_ms"] == [None] * 60
    check_error(wrong, 400, "invalid_value", "interval")
    assert "1, 2 or 5" in wrong.json()["error"]["message"]
