"""The engine client against a child process that speaks the frames and computes nothing."""

import asyncio
import os
import signal

import pytest

from engine.types import RequestOutput, TokenLogprobs
from server.engine_client.output_collector import EngineDied, OutputCollector
from tests.support.watched_engine import collect, run, started


def test_loading_is_reported_before_ready() -> None:
    async def scenario() -> None:
        async with started("count") as engine:
            assert engine.client.status.phase == "loading"
            await engine.reach("ready")
            assert [(s.phase, s.stage, s.loaded_bytes) for s in engine.statuses] == [
                ("loading", "weights", 1000),
                ("ready", "", 2000),
            ]
            assert engine.client.ready is not None
            assert engine.client.ready.num_blocks == 100

    run(scenario)


@pytest.mark.parametrize("mode", ["count", "slowly"])
def test_each_request_gets_its_own_tokens_in_order(mode: str) -> None:
    async def scenario() -> None:
        async with started(mode) as engine:
            requests = [engine.request(prompt_len, max_tokens=50) for prompt_len in (1, 20, 300)]
            mailboxes = [engine.client.submit([request]) for request in requests]
            outputs = await asyncio.gather(*map(collect, mailboxes))
            assert [output.token_ids for output in outputs] == [list(range(n, n + 50)) for n in (1, 20, 300)]
            assert engine.client.num_open == 0
            assert len(engine.steps) == (3 if mode == "count" else 150)

    run(scenario)


def test_requests_submitted_while_loading_are_answered_when_it_is_ready() -> None:
    async def scenario() -> None:
        async with started("count") as engine:
            assert engine.client.ready is None
            mailbox = engine.client.submit([engine.request(7, 1)])
            assert (await collect(mailbox)).token_ids == [7]

    run(scenario)


def test_requests_wait_until_a_step_runs_them() -> None:
    async def scenario() -> None:
        async with started("hold") as engine:
            mailbox = engine.client.submit([engine.request(), engine.request()])
            assert engine.client.num_waiting == 2
            await mailbox.get()
            assert engine.client.num_waiting == 1  # this engine says that it runs one

    run(scenario)


def test_an_aborted_request_is_forgotten_and_abort_is_idempotent() -> None:
    async def scenario() -> None:
        async with started("hold") as engine:
            request = engine.request()
            mailbox = engine.client.submit([request])
            await mailbox.get()
            engine.client.abort([request.request_id, 10**12])
            engine.client.abort([request.request_id])
            assert engine.client.num_open == 0
            later = engine.client.submit([engine.request(9)])
            assert (await later.get())[0].token_ids == [9]
            # one step per request and one for the only abort that the engine was told of
            assert len(engine.steps) == 3

    run(scenario)


def test_a_killed_engine_fails_every_open_request_and_every_later_one() -> None:
    async def scenario() -> None:
        async with started("hold") as engine:
            mailbox = engine.client.submit([engine.request()])
            await mailbox.get()
            os.kill(engine.pid, signal.SIGKILL)
            with pytest.raises(EngineDied, match="can be sent again"):
                await mailbox.get()
            assert engine.client.status.phase == "dead"
            assert engine.client.status.exit_code == 1
            late = engine.client.submit([engine.request()])
            with pytest.raises(EngineDied):
                await late.get()
            assert engine.client.num_open == 0

    run(scenario)


def test_an_engine_that_cannot_start_says_why_to_the_operator_but_not_to_clients() -> None:
    async def scenario() -> None:
        async with started("fail") as engine:
            mailbox = engine.client.submit([engine.request()])
            status = await engine.reach("dead")
            assert (status.message, status.exit_code) == ("/ckpt/model.safetensors: truncated", 2)
            with pytest.raises(EngineDied) as died:
                await mailbox.get()
            assert "/ckpt" not in str(died.value)

    run(scenario)


@pytest.mark.parametrize("mode", ["crash", "die"])
def test_an_engine_that_exits_without_a_word_is_dead(mode: str) -> None:
    async def scenario() -> None:
        async with started(mode) as engine:
            mailbox = engine.client.submit([engine.request()])
            with pytest.raises(EngineDied):
                await mailbox.get()
            assert engine.client.status.message == "the engine process is gone"

    run(scenario)


def test_stop_ends_even_a_process_that_does_not_listen() -> None:
    async def scenario() -> None:
        async with started("mute") as engine:
            mailbox = engine.client.submit([engine.request()])
            await engine.next_status()  # its first message: it runs
            await engine.client.stop()
            with pytest.raises(EngineDied, match="shutting down"):
                await mailbox.get()
            with pytest.raises(ProcessLookupError):
                os.kill(engine.pid, 0)
            await engine.client.stop()

    run(scenario)


def test_draining_keeps_what_runs_and_says_so() -> None:
    async def scenario() -> None:
        async with started("hold") as engine:
            mailbox = engine.client.submit([engine.request(5)])
            engine.client.drain()
            assert (await mailbox.get())[0].token_ids == [5]
            assert engine.client.status.phase == "draining"
            await engine.client.stop()
            engine.client.drain()
            assert engine.client.status.phase == "dead"

    run(scenario)


def test_a_reader_that_lags_gets_everything_as_one_output() -> None:
    def entry(token_id: int) -> TokenLogprobs:
        return TokenLogprobs(token_id, -1.0, [], [])

    async def scenario() -> None:
        mailbox = OutputCollector()
        mailbox.put(RequestOutput(1, [4], logprobs=[entry(4)], prompt_logprobs=[entry(9)], num_cached_tokens=16))
        mailbox.put(RequestOutput(1, [5, 6], logprobs=[entry(5), entry(6)]))
        mailbox.put(RequestOutput(1, [], finish_reason="stop", stop_token_id=6))
        [merged] = await mailbox.get()
        assert merged == RequestOutput(
            1,
            [4, 5, 6],
            logprobs=[entry(4), entry(5), entry(6)],
            prompt_logprobs=[entry(9)],
            finish_reason="stop",
            stop_token_id=6,
            num_cached_tokens=16,
        )

    run(scenario)


def test_outputs_that_arrived_before_the_engine_died_are_not_lost() -> None:
    async def scenario() -> None:
        mailbox = OutputCollector()
        mailbox.put(RequestOutput(1, [4]))
        mailbox.fail("gone")
        assert (await mailbox.get())[0].token_ids == [4]
        for _ in range(2):
            with pytest.raises(EngineDied, match="gone"):
                await mailbox.get()

    run(scenario)


def test_a_mailbox_keeps_the_outputs_of_its_requests_apart() -> None:
    async def scenario() -> None:
        mailbox = OutputCollector()
        for request_id, token_id in [(2, 4), (1, 5), (2, 6), (3, 7), (1, 8)]:
            mailbox.put(RequestOutput(request_id, [token_id]))
        assert [(o.request_id, o.token_ids) for o in await mailbox.get()] == [(2, [4, 6]), (1, [5, 8]), (3, [7])]

    run(scenario)


def test_a_wait_ends_at_its_time_with_nothing_and_the_next_one_has_its_own() -> None:
    """The second wait begins while the first one's timer is still set, which is for an earlier time."""

    async def scenario() -> None:
        loop, mailbox = asyncio.get_running_loop(), OutputCollector()
        until_s = loop.time() + 0.05
        loop.call_soon(mailbox.put, RequestOutput(1, [4]))
        assert len(await mailbox.get(until_s)) == 1
        assert await mailbox.get(until_s + 0.05) == []
        assert loop.time() >= until_s + 0.05
        loop.call_soon(mailbox.put, RequestOutput(1, [5]))
        assert len(await mailbox.get()) == 1

    run(scenario)


def test_those_who_ask_for_the_experts_at_the_same_time_get_one_answer() -> None:
    """The fake engine's reports say how many it has made."""

    async def scenario() -> None:
        async with started("count") as watched:
            await watched.reach("ready")
            ask = watched.client.experts
            reports = await asyncio.gather(ask(None), ask(60.0), ask(None), ask(None, reset=True))
            assert [report.since for report in reports] == [1.0, 2.0, 1.0, 3.0]
            assert (await ask(None)).since == 4.0

    run(scenario)


def test_who_asks_a_dying_engine_for_the_experts_is_told() -> None:
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
