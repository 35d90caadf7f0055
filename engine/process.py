"""The engine process: `python -m engine.process FD [HEARTBEAT_FD [PARENT_PID]]`, with FD one end of a socket pair,
HEARTBEAT_FD the shared memory of the heartbeat counter and PARENT_PID the process that starts it.

It receives Start, loads, sends Ready, and then loops until the other end is closed: receive, step, send the outputs.
The kernel kills it when its parent ends.
"""

import gc
import sys

from engine.out_of_memory import is_out_of_memory
from engine.parent_death import die_with_parent

if __name__ == "__main__":
    die_with_parent(*map(int, sys.argv[3:4]))  # before the imports below, which take seconds
    gc.disable()  # until main(): modules stay, and collections would visit all that is imported again and again

import logging
import os
import select
import signal
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from engine.assertions import NO_ASSERTIONS, are_assertions_off
from engine.distributed.connections import RankConnections
from engine.engine import Engine
from engine.errors import EngineConfigError, FatalEngineError, PeerClosedError
from engine.execution.experts.stats import COUNT_INTERVAL_S
from engine.garbage_collection import make_full_collections_rare
from engine.heartbeat import Heartbeat
from engine.messages import (
    Abort,
    Add,
    ExpertsQuery,
    ExpertsReply,
    Failed,
    FrameReader,
    FromEngine,
    LoadAdapter,
    PrefillStarted,
    Progress,
    Start,
    ToEngine,
    UnloadAdapter,
    encode_frame,
)
from engine.startup.description import ready_message
from engine.step_frames import step_messages
from engine.step_log import StepLog, open_step_log
from engine.types import StepOutput
from model.checkpoint.errors import CheckpointError
from model.group import GroupEndedError

RECEIVE_BYTES = 1 << 18  # read by one call of recv
IDLE_S = 0.5  # interval of an idle engine's heartbeat; the first idle interval audits the block pool, once
USER_ERROR, CRASH = 2, 1  # exit codes
NO_MEMORY = "out of memory: lower --kv-cache-memory-bytes or --max-model-len"
LOST_GROUP = "the connections to the other ranks are gone"

log = logging.getLogger("smoe.engine")


class Channel:
    """The engine's end of the socket pair: sends and receives complete messages."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._reader: FrameReader[ToEngine] = FrameReader(ToEngine)
        self._poll = select.poll()  # select.select() fails with a descriptor above 1023
        self._poll.register(connection, select.POLLIN)

    def send(self, message: FromEngine) -> None:
        """Send one message. Raises PeerClosedError."""
        try:
            self._connection.sendall(encode_frame(message))
        except OSError:
            raise PeerClosedError from None

    def receive(self, timeout_s: float) -> list[ToEngine]:
        """Return all messages that have arrived; wait up to `timeout_s` if none has. Raises PeerClosedError.

        Reads until the socket is empty, so that an abort never waits behind requests of earlier steps. The server
        bounds what can be there: the token ids of all waiting requests.
        """
        messages: list[ToEngine] = []
        while self._poll.poll(0.0 if messages else timeout_s * 1000):
            timeout_s = 0.0
            try:
                chunk = self._connection.recv(RECEIVE_BYTES)
            except OSError:
                raise PeerClosedError from None
            if not chunk:
                raise PeerClosedError
            messages += self._reader.feed(chunk)
        return messages


class EngineProcess:
    """The loop around one engine."""

    def __init__(self, channel: Channel, heartbeat: Heartbeat) -> None:
        self.channel = channel
        self.heartbeat = heartbeat
        self._aborted: list[int] = []  # ids that the next steps name as aborted
        self._step_log: StepLog | None = None

    def run(self) -> int:
        """Serve until the peer closes the socket, or until the engine fails. Return the exit code."""
        ready = False
        try:
            if are_assertions_off():
                raise EngineConfigError(NO_ASSERTIONS)
            engine, early = self._start()
            with closing_ranks(engine.loaded.ranks):
                self.channel.send(ready_message(engine.config, engine.loaded))
                ready = True
                self._serve(engine, early)
        except PeerClosedError:
            return 0
        except (CheckpointError, EngineConfigError) as error:
            return self._fail(str(error), USER_ERROR)
        except (FatalEngineError, GroupEndedError) as error:  # a group may end before the first step, which explains it
            if ready:  # a start that fails is the one line of Failed
                log.exception("the engine ends with all of its requests")
            return self._fail(str(error) or LOST_GROUP, CRASH)
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            return self._fail(NO_MEMORY, CRASH)
        return 0

    def _fail(self, message: str, exit_code: int) -> int:
        self.channel.send(Failed(message, exit_code))
        return exit_code

    def _start(self) -> tuple[Engine, list[ToEngine]]:
        """Load the engine that Start describes; return it with the messages that arrived after Start."""
        messages: list[ToEngine] = []
        while not messages:
            self.heartbeat.beat()
            messages = self.channel.receive(IDLE_S)
        first, *early = messages
        assert isinstance(first, Start), "the first message must be Start"
        log_file = None if first.config.step_log is None else open_step_log(first.config.step_log)  # before weights
        vocabulary = first.vocabulary
        engine = Engine.load(
            first.config,
            self._send_progress,
            vocabulary=vocabulary,
            heartbeat=self.heartbeat,
            end_ids=vocabulary.end_ids if vocabulary else (),
        )
        engine.on_prefill_start = lambda request_ids: self.channel.send(PrefillStarted(request_ids))
        if log_file is not None:
            self._step_log = StepLog(log_file, engine.loaded.config.window)
            engine.on_plan = self._step_log.planned
        gc.collect()
        gc.freeze()  # the model and its modules are never garbage: later collections skip them
        make_full_collections_rare()
        return engine, early

    def _send_progress(self, phase: str, loaded_bytes: int, total_bytes: int) -> None:
        self.heartbeat.beat()
        self.channel.send(Progress(phase, loaded_bytes, total_bytes))

    def _serve(self, engine: Engine, early: Sequence[ToEngine]) -> None:
        self._handle(engine, early)
        audited = False
        while True:
            self.heartbeat.beat()
            busy = engine.has_work()
            messages = self._receive(engine, busy=busy)
            if messages:
                self._handle(engine, messages)
            self._answer_loaded_adapters(engine)
            if engine.has_work():
                self._send_step(engine, engine.step())
                audited = False
            elif messages or engine.experts.has_unreported or self._ended_aborts(engine):
                self._send_step(engine, StepOutput([], engine.stats()))
            elif not busy and not audited:
                engine.check_integrity()
                audited = True

    def _receive(self, engine: Engine, *, busy: bool) -> list[ToEngine]:
        """Return what has arrived, and begin the logged step: it contains the time of receiving, but no idle wait."""
        if busy:
            self._begin_logged_step()
            return self.channel.receive(0.0)
        polls_soon = engine.experts.has_unreported or self._aborted or engine.is_loading_adapters
        messages = self.channel.receive(COUNT_INTERVAL_S if polls_soon else IDLE_S)
        self._begin_logged_step()
        return messages

    def _answer_loaded_adapters(self, engine: Engine) -> None:
        if engine.is_loading_adapters:
            for answer in engine.pop_loaded_adapters():
                self.channel.send(answer)

    def _send_step(self, engine: Engine, step: StepOutput) -> None:
        """Send a step. It is the first that ends after the engine has read the aborts, and no launched step of their
        requests is left; only the compilation of a grammar may go on."""
        ended = self._ended_aborts(engine) if self._aborted else []
        self._aborted = [request_id for request_id in self._aborted if request_id not in ended]
        for message in step_messages(step, ended):
            self.channel.send(message)
        if self._step_log is not None:
            self._step_log.end()

    def _begin_logged_step(self) -> None:
        if self._step_log is not None:
            self._step_log.begin()

    def _ended_aborts(self, engine: Engine) -> list[int]:
        return [request_id for request_id in self._aborted if not engine.is_compiling_aborted(request_id)]

    def _handle(self, engine: Engine, messages: Sequence[ToEngine]) -> None:
        """Carry out the messages, aborts first."""
        aborts = [
            request_id for message in messages if isinstance(message, Abort) for request_id in message.request_ids
        ]
        for request_id in aborts:
            engine.abort(request_id)
        self._aborted += aborts
        aborted = frozenset(aborts)
        for message in messages:
            if isinstance(message, Add):
                for request in message.requests:
                    if request.request_id not in aborted:  # else its abort came behind it
                        engine.add(request)
                        if self._step_log is not None:
                            self._step_log.added(request)
            elif isinstance(message, ExpertsQuery):
                self._report_experts(engine, message)
            elif isinstance(message, LoadAdapter):
                engine.load_adapter(message)
            elif isinstance(message, UnloadAdapter):
                engine.unload_adapter(message.digest)

    def _report_experts(self, engine: Engine, query: ExpertsQuery) -> None:
        start_s = time.monotonic()
        report = engine.experts.reset() if query.reset else engine.experts.report(query.window_s)
        self.channel.send(ExpertsReply(query.query_id, report, time.monotonic() - start_s))


@contextmanager
def closing_ranks(ranks: RankConnections | None) -> Iterator[None]:
    """End the other ranks with the block, and this process when one of them is gone, even while it computes."""
    if ranks is None:
        yield
        return
    ranks.on_death = _exit_without_rank
    if ranks.death:  # before it was set
        _exit_without_rank(ranks.death)
    try:
        yield
    finally:
        ranks.close()


def _exit_without_rank(death: str) -> None:
    os._exit(CRASH)


def main() -> int:
    """Run the process and return its exit code. The server reads its standard error."""
    gc.freeze()
    gc.enable()
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the API process decides
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    connection = socket.socket(fileno=int(sys.argv[1]))
    heartbeat = Heartbeat(*map(int, sys.argv[2:3]))
    return EngineProcess(Channel(connection), heartbeat).run()


if __name__ == "__main__":
    sys.exit(main())
