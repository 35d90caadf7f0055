"""server/engine_client/client.py with an engine process that exchanges messages and computes nothing."""

import asyncio
import os
import signal

import pytest

from engine.messages import Abort, Add, OutputPart, StepDone, StepPart, ToEngine, encode_frame
from engine.types import Request, RequestOutput, SamplingParams, StepOutput, StepStats, TokenLogprobs
from server.engine_client.client import MAX_ADDED, NOT_SENT, EngineClient
from server.engine_client.output_collector import EngineDied
from tests.support.servers.watched_engine import collect, run, started


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
            collectors = [engine.client.submit([request]) for request in requests]
            outputs = await asyncio.gather(*map(collect, collectors))
            assert [output.token_ids for output in outputs] == [list(range(n, n + 50)) for n in (1, 20, 300)]
            assert engine.client.num_open == 0
            assert len(engine.steps) == (3 if mode == "count" else 150)

    run(scenario)


def test_requests_submitted_while_loading_are_answered_when_it_is_ready() -> None:
    async def scenario() -> None:
        async with started("count") as engine:
            assert engine.client.ready is None
            collector = engine.client.submit([engine.request(7, 1)])
            assert (await collect(collector)).token_ids == [7]

    run(scenario)


def test_requests_wait_until_a_step_runs_them() -> None:
    async def scenario() -> None:
        async with started("hold") as engine:
            collector = engine.client.submit([engine.request(), engine.request()])
            assert engine.client.num_waiting == 2
            await collector.get()
            assert engine.client.num_waiting == 1  # this engine reports one running request

    run(scenario)


def test_an_aborted_request_is_forgotten_and_abort_is_idempotent() -> None:
    async def scenario() -> None:
        async with started("hold") as engine:
            request = engine.request()
            collector = engine.client.submit([request])
            await collector.get()
            engine.client.abort([request.request_id, 10**12])
            engine.client.abort([request.request_id])
            assert engine.client.num_open == 0
            later = engine.client.submit([engine.request(9)])
            assert (await later.get())[0].token_ids == [9]
            # one step per request, and one for the only abort that was sent to the engine
            assert len(engine.steps) == 3

    run(scenario)


def test_a_killed_engine_fails_every_open_request_and_every_later_one() -> None:
    async def scenario() -> None:
        async with started("hold") as engine:
            collector = engine.client.submit([engine.request()])
            await collector.get()
            os.kill(engine.pid, signal.SIGKILL)
            with pytest.raises(EngineDied, match="can be sent again"):
                await collector.get()
            assert engine.client.status.phase == "dead"
            assert engine.client.status.exit_code == 1
            late = engine.client.submit([engine.request()])
            with pytest.raises(EngineDied):
                await late.get()
            assert engine.client.num_open == 0

    run(scenario)


def test_an_engine_that_cannot_start_reports_why_to_the_operator_but_not_to_clients() -> None:
    async def scenario() -> None:
        async with started("fail") as engine:
            collector = engine.client.submit([engine.request()])
            status = await engine.reach("dead")
            assert (status.message, status.exit_code) == ("/ckpt/model.safetensors: truncated", 2)
            with pytest.raises(EngineDied) as died:
                await collector.get()
            assert "/ckpt" not in str(died.value)

    run(scenario)


@pytest.mark.parametrize("mode", ["crash", "die"])
def test_an_engine_that_exits_without_a_message_is_dead(mode: str) -> None:
    async def scenario() -> None:
        async with started(mode) as engine:
            collector = engine.client.submit([engine.request()])
            with pytest.raises(EngineDied):
                await collector.get()
            assert engine.client.status.message == "the engine process exited with 9"

    run(scenario)


def test_an_engine_that_the_system_kills_for_its_memory_says_so() -> None:
    async def scenario() -> None:
        async with started("hold") as engine:
            collector = engine.client.submit([engine.request()])
            assert engine.client.pid is not None
            os.kill(engine.client.pid, signal.SIGKILL)
            with pytest.raises(EngineDied):
                await collector.get()
            assert engine.client.status.message == (
                "the engine process was killed by signal 9, as the system does when memory runs out"
            )

    run(scenario)


def test_stop_ends_even_a_process_that_does_not_listen() -> None:
    async def scenario() -> None:
        async with started("mute") as engine:
            collector = engine.client.submit([engine.request()])
            await engine.next_status()  # its first message
            await engine.client.stop()
            with pytest.raises(EngineDied, match="shutting down"):
                await collector.get()
            with pytest.raises(ProcessLookupError):
                os.kill(engine.pid, 0)
            await engine.client.stop()

    run(scenario)


def test_draining_keeps_running_requests_and_is_the_reported_phase() -> None:
    async def scenario() -> None:
        async with started("hold") as engine:
            collector = engine.client.submit([engine.request(5)])
            engine.client.drain()
            assert (await collector.get())[0].token_ids == [5]
            assert engine.client.status.phase == "draining"
            await engine.client.stop()
            engine.client.drain()
            assert engine.client.status.phase == "dead"

    run(scenario)


def test_many_choices_are_sent_in_frames_between_which_the_event_loop_takes_turns(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def scenario() -> None:
        client = EngineClient()
        sent: list[ToEngine | str] = []
        monkeypatch.setattr(client._supervisor, "is_serving", True)
        monkeypatch.setattr(client._supervisor, "send", sent.append)
        requests = [Request(n, [5], SamplingParams()) for n in range(1, 3 * MAX_ADDED)]
        client.submit(requests)
        client.submit([])
        asyncio.get_running_loop().call_soon(sent.append, "a turn")
        client.abort([3 * MAX_ADDED - 1])  # not sent yet
        for _ in range(5):
            await asyncio.sleep(0)
        frames = [message.requests for message in sent if isinstance(message, Add)]
        assert list(map(len, frames)) == [MAX_ADDED, MAX_ADDED, MAX_ADDED - 2]
        assert [request for frame in frames for request in frame] == requests[:-1]
        assert sent.index("a turn") < len(sent) - 1

    asyncio.run(scenario())


def test_a_request_that_cannot_be_encoded_fails_alone_and_the_others_of_its_frame_are_sent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def scenario() -> None:
        client = EngineClient()
        sent: list[ToEngine] = []

        def send(message: ToEngine) -> None:
            encode_frame(message)
            sent.append(message)

        monkeypatch.setattr(client._supervisor, "send", send)
        others = [Request(n, [5], SamplingParams()) for n in (1, 3)]
        client.submit(others[:1])
        collector = client.submit([Request(2, [5], SamplingParams(seed=1 << 64))])
        client.submit(others[1:])
        monkeypatch.setattr(client._supervisor, "is_serving", True)
        client.abort([])  # sends what is pending
        assert [message for message in sent if isinstance(message, Add)] == [Add([one]) for one in others]
        assert await collector.get() == [RequestOutput(2, finish_reason="error", error=NOT_SENT)]
        client.abort([2])
        assert client.num_open == 2 and not any(isinstance(message, Abort) for message in sent)

    asyncio.run(scenario())


def test_outputs_that_come_ahead_of_their_step_reach_their_requests() -> None:
    async def scenario() -> None:
        client = EngineClient()
        collector = client.submit([Request(1, [5] * 4, SamplingParams()), Request(2, [5], SamplingParams())])
        scores = [TokenLogprobs(n, -1.0, [], []) for n in range(3)]
        client._receive(OutputPart(RequestOutput(1, prompt_logprobs=scores[:1])))
        client._receive(OutputPart(RequestOutput(1, prompt_logprobs=scores[1:])))
        client._receive(StepPart([RequestOutput(1, [7], prompt_logprobs=[])]))
        client._receive(StepDone(StepOutput([RequestOutput(2, [8])], StepStats())))
        client._receive(OutputPart(RequestOutput(3, prompt_logprobs=scores)))  # an aborted request
        client._receive(StepPart([RequestOutput(3, [7], prompt_logprobs=[])]))
        outputs = await collector.get()
        assert outputs == [RequestOutput(1, [7], prompt_logprobs=scores), RequestOutput(2, [8])]
        assert not client._parts

    asyncio.run(scenario())
