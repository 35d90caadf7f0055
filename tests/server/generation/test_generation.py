"""server/generation/generation.py: a generation ends its work however it is left, and waits without losing outputs."""

import asyncio
import contextlib
import gc
from collections.abc import AsyncGenerator

import pytest

from engine.types import FinishReason, RequestOutput, Timing
from server.engine_client.output_collector import MAX_OUTPUTS
from server.errors import ApiError
from server.fairness.loop_turns import LoopTurns
from server.generation.choice import Delta
from server.generation.generation import Generation
from server.generation.jobs import Job, JobBuilder
from server.generation.prompt import Prompt
from server.generation.state import ServerState
from server.observability.access_log import RequestRecord
from server.schemas import CompletionRequest
from tests.support.servers.fake_engine import FakeEngine
from tests.support.servers.serving import MODEL, outcomes, saying, state_around, tokenizer

pytestmark = pytest.mark.anyio

LONG = "word " * 40


async def jobs_of_a_prompt(state: ServerState, max_tokens: int = 9, n: int = 1) -> list[Job]:
    body = {"model": MODEL, "prompt": "a", "max_tokens": max_tokens, "seed": 0, "n": n}
    request = CompletionRequest.model_validate(body)
    builder = JobBuilder(state, *state.serving(), request, tenant=0, arrival_s=0.0)
    return await builder.build([Prompt([1], is_continued=False)])


async def lost_generation(state: ServerState, engine: FakeEngine) -> None:
    """Take one batch and drop the generation without closing it."""
    jobs = await jobs_of_a_prompt(state)
    deltas = Generation(state, jobs, RequestRecord("id")).deltas(idle_s=60)
    first = asyncio.ensure_future(anext(deltas))
    await engine.until(lambda: bool(engine.submitted))
    engine.step()
    assert await first


async def test_a_generation_that_is_dropped_without_being_closed_ends_its_work() -> None:
    """The event loop closes generators that the garbage collector finds."""
    engine = FakeEngine(saying(LONG), held=True)
    state = state_around(engine)
    await lost_generation(state, engine)
    gc.collect()
    async with asyncio.timeout(10):
        await engine.until(lambda: bool(engine.aborted))
    assert outcomes(state) == {"received": 1, "abort": 1}


async def test_a_quiet_engine_gives_empty_batches_and_loses_nothing() -> None:
    engine = FakeEngine(saying("one two"), held=True)
    state = state_around(engine)
    jobs = await jobs_of_a_prompt(state)
    text, num_quiet = "", 0
    async with contextlib.aclosing(Generation(state, jobs, RequestRecord("id")).deltas(idle_s=0.001)) as batches:
        async for deltas in batches:
            num_quiet += not deltas
            text += "".join(delta.text for delta in deltas)
            if not deltas:
                engine.step()
    assert text == tokenizer().decode(tokenizer().encode("one two"))
    assert num_quiet >= 3


class NoTurns(LoopTurns):
    """Gives no turn: the event loop is always busy with others."""

    async def next(self, tenant: int) -> None:
        await asyncio.get_running_loop().create_future()


async def backlog_of(
    num_outputs: int, state: ServerState, engine: FakeEngine
) -> tuple[Job, AsyncGenerator[list[Delta], None]]:
    """Start a generation, read its first delta, and let the engine put so many outputs more."""
    [job] = await jobs_of_a_prompt(state, max_tokens=200)
    deltas = Generation(state, [job], RequestRecord("id")).deltas(idle_s=60)
    first = asyncio.ensure_future(anext(deltas))
    await engine.until(lambda: bool(engine.submitted))
    engine.step()
    assert await first
    for _ in range(num_outputs):
        engine.step()
    return job, deltas


@pytest.mark.parametrize("num_outputs", [MAX_OUTPUTS, MAX_OUTPUTS + 1])
async def test_a_backlog_waits_for_a_turn_so_that_a_client_that_left_costs_no_more_work(num_outputs: int) -> None:
    engine = FakeEngine(saying("word " * 250), held=True)
    state = state_around(engine)
    state.turns = NoTurns()
    job, deltas = await backlog_of(num_outputs, state, engine)
    async with contextlib.aclosing(deltas):
        rest = asyncio.ensure_future(anext(deltas))
        await asyncio.sleep(0)
        has_turn = rest.done()
        rest.cancel()  # as when the client is gone
        await asyncio.wait([rest])
    assert has_turn is (num_outputs == MAX_OUTPUTS)
    assert job.choice.num_tokens == 1 + (num_outputs if has_turn else 0)
    assert engine.aborted


@pytest.mark.parametrize("reason", ["timeout", "queue_timeout", "error"])
async def test_choices_that_the_engine_ends_early_have_the_engines_times(reason: FinishReason) -> None:
    engine, record = FakeEngine(saying(LONG), held=True), RequestRecord("id")
    state = state_around(engine)
    jobs = await jobs_of_a_prompt(state, n=2)
    rest = asyncio.ensure_future(anext(Generation(state, jobs, record).deltas(idle_s=60)))
    await engine.until(lambda: bool(engine.submitted))
    timing = Timing(1.0, first_scheduled_s=2.0, finished_s=3.0)  # both were still in the prompt
    for request_id, collector in engine.collectors.items():
        collector.put(RequestOutput(request_id, finish_reason=reason, num_cached_tokens=5, timing=timing))
    with pytest.raises(ApiError):
        await rest
    assert record.timings == [timing, timing] and record.num_cached_tokens == 5
