"""The stub engine gives every request one token per step."""

import asyncio
import socket
import threading

from engine.config import EngineConfig
from engine.heartbeat import Heartbeat
from engine.messages import Abort, Add, Start, StepDone
from engine.types import Request, SamplingParams
from server.bench.stub_engine import READY, StubEngine, serve
from tests.support.conditions import until


def add(*lengths: int) -> Add:
    requests = [Request(i, [300], SamplingParams(max_tokens=length)) for i, length in enumerate(lengths)]
    return Add(requests)


def test_each_request_gets_one_token_per_step_and_a_finish_reason_with_its_last() -> None:
    stub = StubEngine()
    assert stub.handle([add(1, 3)]) == []
    steps = []
    while not stub.is_idle:
        steps.append([(o.request_id, o.finish_reason) for o in stub.step().step.outputs])
    assert steps == [[(0, "length"), (1, None)], [(1, None)], [(1, "length")]]


def test_an_aborted_request_gets_no_further_token() -> None:
    stub = StubEngine()
    [done] = stub.handle([add(5, 5), Abort([0])])
    assert isinstance(done, StepDone) and done.aborted == [0] and done.step.stats.num_running == 1
    assert [output.request_id for output in stub.step().step.outputs] == [1]


def test_a_start_is_answered_at_once() -> None:
    assert StubEngine().handle([Start(EngineConfig(model=""))]) == [READY]


def test_an_idle_stub_engine_increments_its_heartbeat() -> None:
    heartbeat = Heartbeat()
    ours, theirs = socket.socketpair()
    stub = threading.Thread(target=serve, args=(theirs, heartbeat, 100.0))
    stub.start()
    try:
        asyncio.run(until(lambda: heartbeat.count >= 2))
    finally:
        ours.close()
        stub.join()
