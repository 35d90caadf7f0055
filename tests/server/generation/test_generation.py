"""server/generation/generation.py: a generation ends its work however it is left, and waits without losing outputs."""

import asyncio
import contextlib
import gc

import pytest

from server.generation.generation import Generation
from server.generation.jobs import Job, JobBuilder
from server.generation.prompt import Prompt
from server.generation.state import ServerState
from server.observability.access_log import RequestRecord
from server.schemas import CompletionRequest
from tests.support.fake_engine import FakeEngine
from tests.support.serving import MODEL, outcomes, saying, state_around, tokenizer

pytestmark = pytest.mark.anyio

LONG = "word " * 40


async def jobs_of_a_prompt(state: ServerState) -> list[Job]:
    request = CompletionRequest.model_validate({"model": MODEL, "prompt": "a", "max_tokens": 9, "seed": 0})
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
