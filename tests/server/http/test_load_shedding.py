"""server/http/load_shedding.py: short of memory, connections are closed and new generations rejected."""

import httpx
import pytest

from server.http.connections import Connections
from server.observability.memory_pressure import MemoryMonitor
from tests.support.servers.fake_engine import FakeEngine
from tests.support.servers.serving import MODEL, client_of, outcomes, saying, state_around

pytestmark = pytest.mark.anyio

COMPLETION = {"model": MODEL, "prompt": [5] * 100, "max_tokens": 4}


def refused(response: httpx.Response, status: int, code: str) -> None:
    assert (response.status_code, response.json()["error"]["code"]) == (status, code)
    assert 0 < int(response.headers["retry-after"]) <= 120


async def test_short_of_memory_new_generations_are_rejected_and_everything_else_is_answered() -> None:
    used_bytes = [0]
    state = state_around(FakeEngine(saying("a")))
    state.memory = MemoryMonitor(1000, lambda: used_bytes[0])
    async with client_of(state) as client:

        async def answers() -> tuple[int, str | None, int]:
            state.memory.measure()
            response = await client.post("/v1/completions", json=COMPLETION)
            if response.status_code == 503:
                refused(response, 503, "overloaded")
            health = await client.get("/health")
            return response.status_code, response.headers.get("connection"), health.status_code

        assert await answers() == (200, None, 200)
        used_bytes[0] = 920
        assert await answers() == (200, "close", 200)
        used_bytes[0] = 960
        assert await answers() == (503, "close", 200)
        used_bytes[0] = 100
        assert await answers() == (200, None, 200)
    assert outcomes(state) == {"received": 4, "stop": 3, "rejected": 1}


class Busy:
    """A connection with a request."""

    def abort(self) -> None: ...

    def finish(self) -> None: ...


async def test_a_full_server_answers_health_and_metrics_with_and_without_the_proxys_prefix() -> None:
    connections = Connections(max_open=0)
    connections.opened(Busy())
    assert connections.is_full
    async with client_of(state_around(FakeEngine(saying("a"))), connections=connections, root_path="/x") as client:
        for path in ("/health", "/x/health", "/x/health/live", "/metrics", "/x/metrics"):
            assert (await client.get(path)).status_code == 200, path
        refused(await client.get("/x/v1/models"), 503, "overloaded")
        refused(await client.get("/x/x/health"), 503, "overloaded")
