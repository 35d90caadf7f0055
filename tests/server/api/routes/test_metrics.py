"""GET /metrics and GET /metrics/load."""

import asyncio

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.support.servers.fake_engine import FakeEngine
from tests.support.servers.serving import MODEL, client_of, saying, state_around

pytestmark = pytest.mark.anyio


async def test_metrics_have_prometheus_content_type_and_count_requests() -> None:
    async with client_of(state_around(FakeEngine(saying("fine")))) as client:
        await client.post("/v1/completions", json={"model": MODEL, "prompt": "a"})
        reply = await client.get("/metrics")
    assert reply.headers["content-type"].startswith("text/plain; version=")
    samples = {s.name: s.value for family in text_string_to_metric_families(reply.text) for s in family.samples}
    assert samples["smoe_requests_received_total"] == 1


async def test_the_load_counts_a_request_that_the_engine_has_not_begun() -> None:
    engine = FakeEngine(saying("fine"), held=True)
    async with client_of(state_around(engine)) as client:
        request = asyncio.create_task(client.post("/v1/completions", json={"model": MODEL, "prompt": "a"}))
        await engine.until(lambda: bool(engine.submitted))
        reply = await client.get("/metrics/load")
        while engine.step():
            pass
        await request
        after = await client.get("/metrics/load")
    assert reply.headers["content-type"].startswith("text/plain; version=")
    assert "vllm:num_requests_waiting 1\n" in reply.text
    assert "vllm:num_requests_waiting 0\n" in after.text
