"""server/engine_client/expert_queries.py: equal queries share one reply, and a crash fails all."""

import asyncio
import os
import signal

import pytest

from engine.messages import ExpertsQuery, ExpertsReply
from engine.types import ExpertReport
from server.engine_client.expert_queries import KEEP_S, SHARE, ExpertQueries
from server.engine_client.output_collector import EngineDied
from tests.support.servers.watched_engine import run, started


def test_equal_queries_share_one_message_and_later_ones_send_another() -> None:
    async def scenario() -> None:
        sent: list[ExpertsQuery] = []
        queries = ExpertQueries(sent.append)
        asks = [asyncio.create_task(queries.ask(window_s, reset=False)) for window_s in (None, 60.0, None)]
        await asyncio.sleep(0)
        assert sent == [ExpertsQuery(1, None)], "one at a time"
        queries.resolve(ExpertsReply(1, ExpertReport(1.0, [])))
        assert sent[1:] == [ExpertsQuery(2, 60.0)]
        queries.resolve(ExpertsReply(2, ExpertReport(2.0, [])))
        assert [report.since for report in await asyncio.gather(*asks)] == [1.0, 2.0, 1.0]
        late = asyncio.create_task(queries.ask(None, reset=False))
        await asyncio.sleep(0)
        assert sent[2:] == [ExpertsQuery(3, None)]
        queries.fail("gone")
        with pytest.raises(EngineDied, match="gone"):
            await late

    run(scenario)


class AnsweringEngine:
    """Answers each query at once; `since` of a report is the number of the query."""

    def __init__(self) -> None:
        self.sent: list[ExpertsQuery] = []
        self.now_s = 100.0
        self.queries = ExpertQueries(self._send, lambda: self.now_s)

    def _send(self, query: ExpertsQuery) -> None:
        self.sent.append(query)
        reply = ExpertsReply(query.query_id, ExpertReport(float(query.query_id), []))
        asyncio.get_running_loop().call_soon(self.queries.resolve, reply)

    async def ask(self, window_s: float | None = 60.0, *, reset: bool = False) -> float:
        return (await self.queries.ask(window_s, reset=reset)).since


def test_32_clients_that_ask_for_a_window_all_the_time_cost_one_query_a_second() -> None:
    async def scenario() -> None:
        engine = AnsweringEngine()

        async def client() -> None:
            for _ in range(20):
                await engine.ask()

        for second in range(1, 4):
            await asyncio.gather(*(client() for _ in range(32)))
            assert len(engine.sent) == second
            engine.now_s += KEEP_S / 2
            assert await engine.ask() == float(second)
            engine.now_s += KEEP_S / 2

    run(scenario)


def test_each_window_is_kept_by_itself_and_old_ones_are_dropped() -> None:
    async def scenario() -> None:
        engine = AnsweringEngine()
        assert [await engine.ask(window_s) for window_s in (60.0, 5.0, 60.0, 5.0)] == [1.0, 2.0, 1.0, 2.0]
        engine.now_s += KEEP_S
        assert [await engine.ask(window_s) for window_s in (7.0, 60.0, 5.0)] == [3.0, 4.0, 5.0]

    run(scenario)


def test_a_report_since_the_start_is_never_an_earlier_one() -> None:
    async def scenario() -> None:
        engine = AnsweringEngine()
        assert [await engine.ask(None), await engine.ask(None)] == [1.0, 2.0]

    run(scenario)


def test_neither_a_reset_nor_a_crash_leaves_an_earlier_reply() -> None:
    async def scenario() -> None:
        engine = AnsweringEngine()
        assert await engine.ask() == 1.0
        before, _ = await asyncio.gather(engine.ask(9.0), engine.ask(None, reset=True))
        assert before == 2.0
        assert [await engine.ask(), await engine.ask(9.0)] == [4.0, 5.0]
        engine.queries.fail("gone")
        assert await engine.ask() == 6.0

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


def test_the_engine_rests_between_reports_so_that_they_take_a_share_of_its_time() -> None:
    async def scenario() -> None:
        now_s, sent = [100.0], []
        queries = ExpertQueries(sent.append, lambda: now_s[0])
        asks = [asyncio.create_task(queries.ask(window_s, reset=False)) for window_s in (1.0, 2.0)]
        await asyncio.sleep(0)
        queries.resolve(ExpertsReply(1, ExpertReport(1.0, []), engine_s=0.5))
        assert len(sent) == 1 and queries._timer is not None
        assert queries._rest_until_s == pytest.approx(100.0 + 0.5 * (1 - SHARE) / SHARE)
        queries._timer.cancel()
        now_s[0] = queries._rest_until_s
        queries._end_rest()
        assert sent[1:] == [ExpertsQuery(2, 2.0)]
        queries.resolve(ExpertsReply(2, ExpertReport(2.0, [])))
        await asyncio.gather(*asks)

    run(scenario)


def test_a_crash_ends_the_queries_that_were_not_sent_too() -> None:
    async def scenario() -> None:
        queries = ExpertQueries([].append)
        asks = [asyncio.create_task(queries.ask(window_s, reset=False)) for window_s in (1.0, 2.0)]
        await asyncio.sleep(0)
        queries.fail("gone")
        results = await asyncio.gather(*asks, return_exceptions=True)
        assert [type(result) for result in results] == [EngineDied, EngineDied]

    run(scenario)
