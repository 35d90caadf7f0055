"""server/engine_client/process.py: the exit of a process is reported once, in words."""

import asyncio
import os
import signal
import socket
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import uvloop

from engine.config import EngineConfig
from engine.messages import FromEngine, PrefillStarted, Start, encode_frame
from server.engine_client import launch, process
from server.engine_client.launch import launch_engine, package_root
from server.engine_client.process import (
    MAX_TURN_BYTES,
    EngineProcessHandle,
    ProcessExit,
    _EngineProtocol,
)
from tests.support.servers.watched_engine import run

START = Start(EngineConfig(model="/nowhere"))


def handle_of(command: Sequence[str], exits: list[ProcessExit]) -> EngineProcessHandle:
    messages: list[FromEngine] = []
    return EngineProcessHandle(command, messages.append, exits.append)


@pytest.mark.parametrize(
    ("code", "phrase"),
    [
        ("raise SystemExit(3)", "exited with 3"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGABRT)", f"was killed by signal {int(signal.SIGABRT)}"),
    ],
)
def test_the_exit_of_a_process_is_described(code: str, phrase: str) -> None:
    async def scenario() -> None:
        handle = handle_of((sys.executable, "-c", code), [])
        await handle.start(START)
        assert await handle.end(grace_s=25.0) == phrase
        assert await handle.end() == phrase

    run(scenario)


def test_a_process_that_was_launched_ahead_gets_the_message_of_the_start() -> None:
    async def scenario() -> None:
        code = "import os, sys; sys.exit(os.read(int(sys.argv[1]), 1 << 16) == bytes.fromhex(sys.argv[-1]))"
        command = (sys.executable, "-c", f"import sys; sys.argv.append({encode_frame(START).hex()!r}); {code}")
        handle = handle_of(("/nowhere",), [])
        launched = await launch_engine(command)
        await handle.adopt(launched)
        await handle.start(START)
        assert handle.pid == launched.process.pid
        assert await handle.end(grace_s=25.0) == "exited with 1"

    run(scenario)


def test_the_process_is_given_the_id_of_its_parent() -> None:
    async def scenario() -> None:
        handle = handle_of((sys.executable, "-c", "import os, sys; sys.exit(os.getppid() == int(sys.argv[3]))"), [])
        await handle.start(START)
        assert await handle.end(grace_s=25.0) == "exited with 1"

    run(scenario)


def test_the_process_gets_the_settings_of_torchs_allocator(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "engine_environment", lambda: {**os.environ, "PYTORCH_ALLOC_CONF": "as given"})

    async def scenario() -> None:
        code = "import os, sys; sys.exit(os.environ['PYTORCH_ALLOC_CONF'] == 'as given')"
        handle = handle_of((sys.executable, "-c", code), [])
        await handle.start(START)
        assert await handle.end(grace_s=25.0) == "exited with 1"

    run(scenario)


def test_only_the_first_failure_is_reported_and_messages_to_a_dead_process_are_dropped() -> None:
    async def scenario() -> None:
        exits: list[ProcessExit] = []
        handle = handle_of((sys.executable, "-c", "input()"), exits)
        await handle.start(START)
        for message in ("first", "second"):
            handle.fail(ProcessExit(message))
        handle.send(START)
        await handle.end()
        assert exits == [ProcessExit("first")]

    run(scenario)


def test_a_handle_that_was_never_started_can_be_ended() -> None:
    async def scenario() -> None:
        assert await handle_of(("/nowhere",), []).end() == "was never started"

    run(scenario)


def test_processes_that_the_engine_started_are_waited_for_by_their_standard_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`cat` stands for a rank that takes time to give back its memory: it ends when the test kills it."""
    monkeypatch.setattr(process, "RANKS_GRACE_S", 1000.0)
    os.mkfifo(tmp_path / "pipe")
    pipe = os.open(tmp_path / "pipe", os.O_RDWR)
    code = (
        "import pathlib, subprocess, sys; pipe, pid = map(pathlib.Path, sys.argv[1:3]);"
        "pid.write_text(str(subprocess.Popen(['cat', pipe], stdout=subprocess.DEVNULL).pid))"
    )

    async def scenario() -> None:
        handle = handle_of((sys.executable, "-c", code, str(tmp_path / "pipe"), str(tmp_path / "pid")), [])
        await handle.start(START)
        await handle.end(grace_s=25.0)
        waiting = asyncio.create_task(handle.wait_for_ranks())
        for _ in range(100):
            await asyncio.sleep(0)
        assert not waiting.done()
        os.kill(int((tmp_path / "pid").read_text()), signal.SIGKILL)
        await waiting

    run(scenario)
    os.close(pipe)


def test_the_engine_module_lies_below_the_package_root() -> None:
    assert (package_root() / "engine" / "process.py").is_file()


def test_reading_pauses_for_a_turn_of_the_event_loop_after_many_bytes() -> None:
    class Transport(asyncio.Transport):
        def __init__(self) -> None:
            super().__init__()
            self.calls: list[str] = []

        def pause_reading(self) -> None:
            self.calls.append("pause")

        def resume_reading(self) -> None:
            self.calls.append("resume")

        def is_closing(self) -> bool:
            return False

    async def scenario() -> None:
        received: list[FromEngine] = []
        unread, transport = socket.socket(), Transport()
        protocol = _EngineProtocol(received.append, lambda reason: None, lambda: None, unread)
        protocol.connection_made(transport)
        frame = encode_frame(PrefillStarted(list(range(1000))))
        frames = frame * (MAX_TURN_BYTES // len(frame))
        protocol.data_received(frames)
        assert transport.calls == []
        protocol.data_received(frame)
        assert transport.calls == ["pause"]
        await asyncio.sleep(0)
        assert transport.calls == ["pause", "resume"]
        assert len(received) == MAX_TURN_BYTES // len(frame) + 1
        unread.close()

    asyncio.run(scenario())


@pytest.mark.parametrize("new_loop", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_what_a_process_sent_before_its_end_arrives_although_a_write_fails_first(
    new_loop: Callable[[], asyncio.AbstractEventLoop],
) -> None:
    async def scenario() -> None:
        received: list[FromEngine] = []
        lost = asyncio.Event()
        ours, theirs = socket.socketpair()
        protocol = _EngineProtocol(received.append, lambda reason: None, lost.set, ours.dup())
        transport, _ = await asyncio.get_running_loop().create_connection(lambda: protocol, sock=ours)
        theirs.sendall(encode_frame(PrefillStarted([7])))
        theirs.close()
        transport.write(b"to nobody")
        await lost.wait()
        assert received == [PrefillStarted([7])]

    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(scenario())
