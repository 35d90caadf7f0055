"""server/lifecycle/memory_bounds.py: the share of memory that the engine found is applied where memory is taken."""

import httpx
import pytest

from engine.config import EngineConfig
from server.fairness.budgets import LEAST_QUEUED_TOKENS, LEAST_REQUEST_MEMORY, server_demand
from server.fairness.byte_budget import ByteBudget
from server.fairness.request_memory import RequestMemory
from server.generation.reply_size import MAX_REPLY_VALUES, SCORE_BYTES
from server.generation.state import MAX_TOTAL_PROMPT_IDS, ServerState
from server.lifecycle.memory_bounds import apply_memory_share, with_server_memory
from server.settings.settings import Settings
from tests.support.servers.fake_engine import FakeEngine
from tests.support.servers.serving import client_of, saying, state_around

pytestmark = pytest.mark.anyio

USUAL = 1 << 30


def server(share: float, **flags: object) -> tuple[RequestMemory, ServerState]:
    bodies, state = RequestMemory(USUAL), state_around(FakeEngine(saying("so it was")))
    state.reply_memory = ByteBudget(USUAL)
    apply_memory_share(share, Settings(**flags), bodies, state)  # type: ignore[arg-type]
    return bodies, state


def test_the_engine_learns_what_processes_and_requests_need() -> None:
    config = with_server_memory(EngineConfig(model="m"), Settings())
    demand = server_demand(Settings())
    sizes = config.server_bytes, config.ample_server_bytes, config.min_server_bytes
    assert sizes == (demand.usual_bytes, demand.ample_bytes, demand.least_bytes)


def test_with_the_whole_share_nothing_changes() -> None:
    bodies, state = server(1.0)
    assert bodies.limit_bytes == state.reply_memory.limit_bytes == USUAL
    assert state.admission.max_tokens == 1024 * 1024
    assert (state.max_reply_values, state.max_total_prompt_ids) == (MAX_REPLY_VALUES, MAX_TOTAL_PROMPT_IDS)


def test_without_a_share_every_bound_has_its_least_size() -> None:
    bodies, state = server(0.0)
    assert bodies.limit_bytes == state.reply_memory.limit_bytes == LEAST_REQUEST_MEMORY
    assert state.admission.max_tokens == LEAST_QUEUED_TOKENS
    assert state.max_reply_values == LEAST_REQUEST_MEMORY // SCORE_BYTES < MAX_REPLY_VALUES
    assert state.max_total_prompt_ids == 4 * LEAST_QUEUED_TOKENS


def test_bounds_that_flags_set_stay() -> None:
    bodies, state = server(0.0, request_memory_bytes=5 << 20, max_num_queued_tokens=1000)
    assert bodies.limit_bytes == state.reply_memory.limit_bytes == 5 << 20
    assert state.admission.max_tokens == 1000
    assert (state.max_reply_values, state.max_total_prompt_ids) == (MAX_REPLY_VALUES, MAX_TOTAL_PROMPT_IDS)


async def test_one_request_beyond_the_smaller_bounds_is_refused_and_others_are_answered() -> None:
    """A budget that is empty takes a single request of any size, so that a request has a bound of its own."""
    _, state = server(0.0)

    async def post(client: httpx.AsyncClient, **fields: object) -> tuple[int, str]:
        reply = await client.post("/v1/completions", json={"model": "test/model", "max_tokens": 4, **fields})
        return reply.status_code, "" if reply.is_success else reply.json()["error"]["code"]

    state.max_total_prompt_ids, state.max_reply_values = (
        31,
        8 * 21 * 4,
    )  # below what the small context of the fake allows
    async with client_of(state) as client:
        assert await post(client, prompt=[[7] * 4] * 4, n=2) == (400, "integer_above_max_value")
        assert await post(client, prompt=[[7] * 4] * 3, n=2) == (200, "")
        values = {"logprobs": 20, "n": 8}
        assert await post(client, prompt="x", **values | {"max_tokens": 5}) == (400, "reply_too_large")
        assert await post(client, prompt="x", **values) == (200, "")
