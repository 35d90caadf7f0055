"""server/engine_client/expert_queries.py: equal queries share one reply, and a crash fails all."""

import asyncio
import os
import signal

import pytest

from engine.messages import ExpertsQuery, ExpertsReply
from engine.types import ExpertReport
from server.engine_client.expert_queries import ExpertQueries
from server.engine_client.output_collector import EngineDied
from tests.support.watched_engine import run, started


def test_equal_queries_share_one_message_and_later_ones_send_another() -> None:
    async def scenario() -> None:
        sent: list[ExpertsQuery] = []
        queries = ExpertQueries(sent.append)
        asks = [asyncio.create_task(queries.ask(window_s, reset=False)) for window_s in (None, 60.0, None)]
        await asyncio.sleep(0)
        assert sent == [ExpertsQuery(1, None), ExpertsQuery(2, 60.0)]
        queries.resolve(ExpertsReply(2, ExpertReport(2.0, [])))
        queries.resolve(ExpertsReply(1, ExpertReport(1.0, [])))
        assert [report.since for report in await asyncio.gather(*asks)] == [1.0, 2.0, 1.0]
        late = asyncio.create_task(queries.ask(None, reset=False))
        await asyncio.sleep(0)
        assert sent[2:] == [ExpertsQuery(3, None)]
        queries.fail("gone")
        with pytest.raises(EngineDied, match="gone"):
            await late

    run(scenario)


def test_simultaneous_queries_get_one_reply() -> None:
    """`since` of the fake engine's reports is the number of its replies."""

    async def scenario() -> None:
        async with started("count") as watched:
            await watched.reach("ready")
            ask = watched.client.experts
            reports = await asyncio.gather(ask(None), ask(60.0), ask(None), ask(None, reset=True))
            assert [report.since for report in reports] == [1.0, 2.0, 1.0, 3.0]
            assert (await ask(None)).since == 4.0

    run(scenario)


def test_a_query_to_a_dying_engine_fails() -> None:
    async def scenario() -> None:
        async with started("hold") as watched:
            await watched.reach("ready")
            asked = asyncio.create_task(watched.client.experts(None))
            await asyncio.sleep(0)
            os.kill(watched.pid, signal.SIGKILL)
            with pytest.raises(EngineDied):
                await asked
            with pytest.raises(EngineDied):
                await watched.client.experts(None)

    run(scenario)
