"""A persistent GPU fault ends the engine: its CUDA context is unusable. (Simulated: no GPU.)"""

import socket
from collections.abc import Callable
from typing import Any

import pytest

from engine import process
from engine.engine import Engine
from engine.errors import FatalEngineError
from engine.heartbeat import Heartbeat
from engine.messages import Add, Failed, FrameReader, FromEngine, Start, encode_frame
from engine.process import CRASH, Channel, EngineProcess
from engine.types import Request, SamplingParams
from smoe import LocalEngine
from tests.support.paths import DEMO

PERSISTENT = (
    "CUDA error: device-side assert triggered\nCompile with `TORCH_USE_CUDA_DSA`",
    "CUDA error: an illegal memory access was encountered",
    "CUDA error: unspecified launch failure",
    "Triton Error [CUDA]: an illegal memory access was encountered",
)
TRANSIENT = ("CUDA out of memory. Tried to allocate 2.00 GiB", "Triton Error [CUDA]: out of memory", "division by zero")


@pytest.fixture(scope="module")
def engine() -> Engine:
    return LocalEngine(DEMO, dtype="float32", threads=1)._engine


def failing(message: str) -> Callable[..., Any]:
    def fail(*_: object) -> None:
        raise RuntimeError(message)

    return fail


@pytest.mark.parametrize("place", ["launch", "finish"])
@pytest.mark.parametrize("message", PERSISTENT)
def test_a_persistent_fault_ends_the_engine(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, place: str, message: str
) -> None:
    monkeypatch.setattr(engine.loaded.runner, place, failing(message))
    engine.add(Request(1, [5, 6], SamplingParams(max_tokens=2)))
    with pytest.raises(FatalEngineError) as lost:
        engine.step()
    assert "\n" not in str(lost.value)
    engine.abort(1)


@pytest.mark.parametrize("place", ["launch", "finish"])
@pytest.mark.parametrize("message", TRANSIENT)
def test_any_other_fault_ends_the_requests_of_its_step(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, place: str, message: str
) -> None:
    monkeypatch.setattr(engine.loaded.runner, place, failing(message))
    engine.add(Request(2, [5, 6], SamplingParams(max_tokens=2)))
    assert [output.finish_reason for output in engine.step().outputs] == ["error"]
    assert not engine.has_work()


def test_the_process_reports_the_fault_and_exits_with_the_crash_code(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine.loaded.runner, "launch", failing(PERSISTENT[0]))
    monkeypatch.setattr(process.Engine, "load", lambda *args, **kwargs: engine)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        request = Request(3, [5], SamplingParams())
        ours.sendall(encode_frame(Start(engine.config)) + encode_frame(Add([request])))
        assert EngineProcess(Channel(theirs), Heartbeat()).run() == CRASH
        theirs.shutdown(socket.SHUT_WR)
        reader, messages = FrameReader[FromEngine](FromEngine), list[FromEngine]()
        while chunk := ours.recv(1 << 16):
            messages += reader.feed(chunk)
    assert isinstance(messages[-1], Failed)
    assert messages[-1].exit_code == CRASH and "device-side assert" in messages[-1].message
    engine.abort(3)
