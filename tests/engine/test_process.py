"""The engine process over its socket: it loads, serves, rejects, and never outlives its parent."""

import os
import re
import resource
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from threading import Event, Thread

import pytest

from engine.config import EngineConfig
from engine.engine import Engine
from engine.errors import FatalEngineError, PeerClosedError
from engine.grammars.build_queue import GrammarQueue
from engine.heartbeat import Heartbeat
from engine.messages import (
    Abort,
    Add,
    ExpertsQuery,
    ExpertsReply,
    Failed,
    FrameReader,
    FromEngine,
    PrefillStarted,
    Progress,
    Ready,
    Start,
    StepDone,
    ToEngine,
    encode_frame,
)
from engine.process import CRASH, LOST_GROUP, NO_MEMORY, Channel, EngineProcess
from engine.types import Request, RequestOutput, SamplingParams
from model.group import GroupEndedError
from smoe import LocalEngine
from tests.support.checkpoints.mixtral import Shape, save_random_checkpoint
from tests.support.conditions import LIMIT_S
from tests.support.forked.commands import popen
from tests.support.paths import DEMO

TIMEOUT_S = 60.0
Popen = Callable[..., "subprocess.Popen[bytes]"]
MANY_FILES = 1100  # select.select() takes descriptors up to 1023


class Peer:
    """The API process's end of the socket."""

    def __init__(self, connection: socket.socket, process: subprocess.Popen[bytes], heartbeat: Heartbeat) -> None:
        self.connection = connection
        self.process = process
        self.reader: FrameReader[FromEngine] = FrameReader(FromEngine)
        self.pending: list[FromEngine] = []
        self.started: list[int] = []
        self.heartbeat = heartbeat

    def send(self, message: ToEngine) -> None:
        self.connection.sendall(encode_frame(message))

    def receive(self) -> FromEngine:
        """Return the next message other than PrefillStarted, whose ids are kept in `started`."""
        while not self.pending:
            chunk = self.connection.recv(1 << 16)
            if not chunk:
                raise EOFError
            for message in self.reader.feed(chunk):
                if isinstance(message, PrefillStarted):
                    self.started += message.request_ids
                else:
                    self.pending.append(message)
        return self.pending.pop(0)

    def receive_past_progress(self) -> FromEngine:
        while isinstance(message := self.receive(), Progress):
            pass
        return message

    def outputs_until_end(self, request_id: int) -> list[RequestOutput]:
        outputs: list[RequestOutput] = []
        while not outputs or outputs[-1].finish_reason is None:
            message = self.receive()
            assert isinstance(message, StepDone)
            outputs += [o for o in message.step.outputs if o.request_id == request_id]
        return outputs


@contextmanager
def engine_process(popen: Popen = popen, **variables: str) -> Iterator[Peer]:
    """Start a process; by default it is forked."""
    ours, theirs = socket.socketpair()
    ours.settimeout(TIMEOUT_S)
    heartbeat = Heartbeat()
    fds = theirs.fileno(), heartbeat.fd
    command = [sys.executable, "-m", "engine.process", *map(str, fds)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **variables}
    process = popen(command, pass_fds=fds, env=environment)
    theirs.close()
    heartbeat.close()
    try:
        yield Peer(ours, process, heartbeat)
    finally:
        ours.close()
        assert process.wait(TIMEOUT_S) is not None


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("checkpoint")
    save_random_checkpoint(Shape(), path)
    return path


def test_it_loads_generates_aborts_and_exits_with_its_parent(checkpoint: Path) -> None:
    with engine_process(subprocess.Popen) as peer:
        peer.send(Start(EngineConfig(model=str(checkpoint), dtype="float32", threads=1, max_model_len=200)))
        ready = peer.receive_past_progress()
        assert isinstance(ready, Ready) and ready.max_model_len == 200 and ready.vocab_size == 101
        endless = Request(1, [5], SamplingParams(max_tokens=190, ignore_eos=True))
        short = Request(2, [5, 6], SamplingParams(max_tokens=3, temperature=0, num_logprobs=0, ignore_eos=True))
        peer.send(Add([endless, short]))
        outputs = peer.outputs_until_end(2)
        assert sum(len(o.token_ids) for o in outputs) == 3
        assert outputs[-1].finish_reason == "length"
        assert outputs[-1].timing is not None and outputs[-1].timing.first_token_s is not None
        peer.send(Abort([1, 1, 77]))
        while not (isinstance(message := peer.receive(), StepDone) and message.step.stats.num_running == 0):
            assert isinstance(message, StepDone) and message.aborted == []
        assert message.aborted == [1, 1, 77]
        assert message.step.stats.num_blocks_held == 0
    assert peer.process.returncode == 0


def test_one_receive_reads_all_messages_that_have_arrived(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine.process.RECEIVE_BYTES", 50)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        messages = [Add([Request(n, list(range(n)), SamplingParams())]) for n in range(40)] + [Abort([3])]
        ours.sendall(b"".join(map(encode_frame, messages)))
        assert Channel(theirs).receive(TIMEOUT_S) == messages


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (GroupEndedError("rank 1 is gone"), "rank 1 is gone"),
        (GroupEndedError(), LOST_GROUP),
        (FatalEngineError("rank 1 does not come"), "rank 1 does not come"),
        (MemoryError(), NO_MEMORY),
    ],
    ids=["a named rank", "the group", "a rank that does not come", "memory"],
)
def test_a_start_that_fails_says_why_and_logs_no_traceback(
    fault: Exception, message: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(_: EngineProcess) -> None:
        raise fault

    monkeypatch.setattr(EngineProcess, "_start", fail)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        assert EngineProcess(Channel(theirs), Heartbeat()).run() == CRASH
        reader: FrameReader[FromEngine] = FrameReader(FromEngine)
        assert reader.feed(ours.recv(1 << 16)) == [Failed(message, CRASH)]
    assert not caplog.records


def test_an_aborted_request_that_is_still_in_the_socket_is_never_queued() -> None:
    class Recorder:
        def __init__(self) -> None:
            self.calls: list[tuple[str, int]] = []

        def add(self, request: Request) -> None:
            self.calls.append(("add", request.request_id))

        def abort(self, request_id: int) -> None:
            self.calls.append(("abort", request_id))

    ours, theirs = socket.socketpair()
    with ours, theirs:
        process, engine = EngineProcess(Channel(theirs), Heartbeat()), Recorder()
        requests = [Request(n, [5], SamplingParams()) for n in (1, 2, 3)]
        process._handle(engine, [Add(requests[:2]), Add(requests[2:]), Abort([2])])  # type: ignore[arg-type]
        assert engine.calls == [("abort", 2), ("add", 1), ("add", 3)]


class SlowCompiler:
    """Compiles no grammar before `may_finish` is set."""

    def __init__(self) -> None:
        self.started, self.may_finish = Event(), Event()

    def build(self, grammar: str, place: object) -> object:
        self.started.set()
        assert self.may_finish.wait(TIMEOUT_S)
        return object()


def test_an_abort_is_confirmed_only_when_the_requests_grammar_is_no_longer_compiled() -> None:
    """The engine is idle when the compilation ends."""
    compiler = SlowCompiler()
    engine = LocalEngine(DEMO, dtype="float32", threads=1)._engine
    engine._grammars = GrammarQueue(compiler, 9)  # type: ignore[arg-type]
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.settimeout(TIMEOUT_S)
        params = SamplingParams(max_tokens=2)
        engine.add(Request(1, [5], params, grammar="{}"))
        assert compiler.started.wait(TIMEOUT_S)
        process = EngineProcess(Channel(theirs), Heartbeat())
        ours.sendall(encode_frame(Abort([1, 2])))
        thread = Thread(target=serve_until_closed, args=(process, engine))
        thread.start()
        assert next_aborted(ours) == [2]
        assert not engine.has_work()
        compiler.may_finish.set()
        assert next_aborted(ours) == [1]
        ours.close()
        thread.join(TIMEOUT_S)


def serve_until_closed(process: EngineProcess, engine: Engine) -> None:
    with suppress(PeerClosedError):
        process._serve(engine, [])


def next_aborted(connection: socket.socket) -> list[int]:
    [message] = FrameReader[FromEngine](FromEngine).feed(connection.recv(1 << 16))
    assert isinstance(message, StepDone)
    return message.aborted


@contextmanager
def many_open_files() -> Iterator[None]:
    """Hold MANY_FILES descriptors open, so that every new one has a higher number."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = MANY_FILES + 200
    if soft != resource.RLIM_INFINITY and soft < needed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))
    try:
        with ExitStack() as files, Path(os.devnull).open("rb") as null:
            for _ in range(MANY_FILES):
                files.callback(os.close, os.dup(null.fileno()))
            yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_it_serves_on_a_descriptor_above_1023(checkpoint: Path) -> None:
    """An engine that is restarted inherits a high number from a server with many connections."""
    with many_open_files(), engine_process(subprocess.Popen) as peer:
        peer.send(Start(EngineConfig(model=str(checkpoint), dtype="float32", threads=1, max_model_len=20)))
        assert isinstance(peer.receive_past_progress(), Ready)
        peer.send(Add([Request(1, [5], SamplingParams(max_tokens=2, ignore_eos=True))]))
        assert peer.outputs_until_end(1)[-1].finish_reason == "length"
    assert peer.process.returncode == 0


def test_started_prefills_are_reported_before_they_are_computed(checkpoint: Path) -> None:
    """Prompt 1 takes three steps, prompt 2 never runs. Ids may need more than 32 bits."""
    first = 2**40
    with engine_process() as peer:
        config = EngineConfig(model=str(checkpoint), dtype="float32", threads=1, max_num_batched_tokens=4)
        peer.send(Start(config))
        peer.receive_past_progress()
        params = SamplingParams(max_tokens=1, ignore_eos=True)
        both = Add([Request(first, [5] * 10, params), Request(first + 1, [5], params)])
        peer.connection.sendall(encode_frame(both) + encode_frame(Abort([first + 1])))
        assert peer.outputs_until_end(first)[-1].finish_reason == "length"
        assert peer.started == [first] * 3


def test_loading_computing_and_waiting_all_advance_the_heartbeat(checkpoint: Path) -> None:
    with engine_process() as peer:
        config = EngineConfig(model=str(checkpoint), dtype="float32", threads=1, max_num_batched_tokens=64)
        peer.send(Start(config))
        peer.receive_past_progress()
        loaded = peer.heartbeat.count
        assert loaded > 10  # tensors, and the layers and kernels of the measured step
        before = peer.heartbeat.count
        while peer.heartbeat.count < before + 3:  # idle: nothing is sent
            assert peer.process.poll() is None


def test_a_stopped_engine_does_not_outlive_its_parent() -> None:
    """The parent is killed while its engine is stopped and cannot read its socket."""
    program = (
        "import signal, socket, subprocess, sys\n"
        "ours, theirs = socket.socketpair()\n"
        "command = [sys.executable, '-m', 'engine.process', str(theirs.fileno())]\n"
        "print(subprocess.Popen(command, pass_fds=[theirs.fileno()]).pid, flush=True)\n"
        "signal.pause()\n"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        engine = os.pidfd_open(pid)
        try:
            while not ignores_sigterm(pid):
                assert parent.poll() is None
            os.kill(pid, signal.SIGSTOP)
            parent.kill()
            assert select.select([engine], [], [], LIMIT_S)[0], "the engine still runs"
        finally:
            os.close(engine)


def ignores_sigterm(pid: int) -> bool:
    """True if the process ignores SIGTERM, which it does after its imports."""
    [mask] = re.findall(r"SigIgn:\s*(\w+)", Path(f"/proc/{pid}/status").read_text())
    return bool(int(mask, 16) >> (signal.SIGTERM - 1) & 1)


def test_a_prompt_that_never_fits_gets_an_error_and_the_others_run(checkpoint: Path) -> None:
    with engine_process() as peer:
        peer.send(Start(EngineConfig(model=str(checkpoint), dtype="float32", threads=1, max_model_len=20)))
        peer.receive_past_progress()
        params = SamplingParams(max_tokens=2, ignore_eos=True)
        peer.send(Add([Request(1, [3] * 20, params), Request(2, [3] * 10, params)]))
        [rejected] = peer.outputs_until_end(1)
        assert rejected.finish_reason == "error" and "1 to 19" in (rejected.error or "")
        assert peer.outputs_until_end(2)[-1].finish_reason == "length"


def test_expert_counts_are_sent_with_steps_and_as_replies_to_queries(checkpoint: Path) -> None:
    """3 prompt positions and 4 completion positions, each with 2 experts in each of 2 layers."""
    with engine_process() as peer:
        peer.send(Start(EngineConfig(model=str(checkpoint), dtype="float32", threads=1, max_model_len=50)))
        peer.receive_past_progress()
        peer.send(Add([Request(1, [5, 6, 7], SamplingParams(max_tokens=5, ignore_eos=True))]))
        reported = 0
        while reported < 2 * 2 * 7:
            message = peer.receive()
            assert isinstance(message, StepDone)
            reported += sum(map(sum, message.step.stats.expert_tokens or []))
        assert reported == 2 * 2 * 7
        for window_s, reset, expected in ((None, False, 14), (60.0, False, 14), (None, True, 0), (60.0, False, 0)):
            peer.send(ExpertsQuery(9, window_s, reset))
            while not isinstance(message := peer.receive(), ExpertsReply):
                pass
            assert message.query_id == 9
            assert [sum(layer.tokens) for layer in message.report.layers] == [expected] * 2


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_kv_blocks": 2, "max_model_len": 100}, "--max-model-len 32 fits"),
        ({"kv_cache_memory_bytes": 100}, "--kv-cache-memory-bytes of 100 B is too small"),
        ({"max_model_len": 5000}, "--max-model-len 1024 fits"),
        ({"model": "/nonexistent"}, "/nonexistent"),
    ],
)
def test_a_failed_start_gives_its_reason_in_one_line(
    checkpoint: Path, settings: dict[str, object], message: str
) -> None:
    with engine_process() as peer:
        peer.send(Start(EngineConfig(**{"model": str(checkpoint), **settings})))  # type: ignore[arg-type]
        failed = peer.receive_past_progress()
        assert isinstance(failed, Failed)
        assert message in failed.message and "\n" not in failed.message
    assert peer.process.returncode == 2


@pytest.mark.parametrize("level", ["1", "2"])
def test_without_assertions_it_refuses_to_start(checkpoint: Path, level: str) -> None:
    with engine_process(subprocess.Popen, PYTHONOPTIMIZE=level, PYTHONDONTWRITEBYTECODE="1") as peer:
        peer.send(Start(EngineConfig(model=str(checkpoint))))
        failed = peer.receive()
        assert isinstance(failed, Failed)
        assert "python -O" in failed.message and "\n" not in failed.message
    assert peer.process.returncode == 2
