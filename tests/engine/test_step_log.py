"""engine/step_log.py, behind the engine's loop: each step, its work and the requests before it."""

import errno
import itertools
import logging
import os
import socket
from pathlib import Path
from threading import Thread

import msgspec
import pytest

from engine.config import EngineConfig
from engine.errors import EngineConfigError
from engine.heartbeat import Heartbeat
from engine.messages import Add, Failed, FrameReader, FromEngine, Start, StepDone, encode_frame
from engine.planning.logged_steps import LoggedRequest, LoggedStep, read_step_log
from engine.planning.step_shape import StepShape
from engine.planning.step_time_model import MeasurementError
from engine.process import Channel, EngineProcess
from engine.scheduling.step_plan import StepPlan
from engine.step_log import StepLog, check_step_log, open_step_log
from engine.types import Request, SamplingParams
from tests.support.conditions import LIMIT_S
from tests.support.paths import DEMO


def _until_finished(connection: socket.socket, count: int) -> None:
    reader: FrameReader[FromEngine] = FrameReader(FromEngine)
    num_finished = 0
    while num_finished < count:
        for message in reader.feed(connection.recv(1 << 16)):
            if isinstance(message, StepDone):
                num_finished += sum(output.finish_reason is not None for output in message.step.outputs)


def test_the_engine_writes_its_steps_with_their_work_and_the_requests_before_them(tmp_path: Path) -> None:
    path = tmp_path / "steps.jsonl"
    config = EngineConfig(model=str(DEMO), max_num_batched_tokens=32, kv_cache_memory_bytes=1 << 22, step_log=str(path))
    greedy = SamplingParams(max_tokens=3, temperature=0.0, ignore_eos=True)
    requests = [Request(1, list(range(300, 340)), greedy, arrival_s=0.25), Request(2, [300] * 5, greedy, arrival_s=0.5)]
    ours, theirs = socket.socketpair()
    ours.settimeout(LIMIT_S)
    with ours, theirs:
        ours.sendall(encode_frame(Start(config)))
        process = EngineProcess(Channel(theirs), Heartbeat())
        running = Thread(target=process.run)
        running.start()
        ours.sendall(encode_frame(Add(requests)))
        _until_finished(ours, 2)
        ours.shutdown(socket.SHUT_WR)
        running.join(LIMIT_S)
    steps = read_step_log(path)
    # 32 of 40 positions; the other 8 beside the second prompt; then one token each, twice.
    shapes = [StepShape(32, 0, 0, 528), StepShape(13, 2, 0, 8 * 32 + 36 + 15)]
    assert [step.shape for step in steps] == [*shapes, StepShape(2, 2, 41 + 6, 0), StepShape(2, 2, 42 + 7, 0)]
    assert steps[0].added == [LoggedRequest(0.25, 40, 3), LoggedRequest(0.5, 5, 3)]
    assert not any(step.added for step in steps[1:])
    for step, following in itertools.pairwise(steps):
        assert step.seconds > 0 and step.begun_s + step.seconds <= following.begun_s


def test_a_file_that_cannot_be_written_is_refused_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "none" / "steps.jsonl"
    with pytest.raises(EngineConfigError, match=r"^--step-log .*/none/steps\.jsonl: No such file or directory$"):
        open_step_log(str(path))


def test_a_file_that_cannot_be_written_is_named_before_anything_is_loaded(tmp_path: Path) -> None:
    """The model is missing too, but the engine does not come to it. A pipe without a reader would block the open."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    ours, theirs = socket.socketpair()
    ours.settimeout(LIMIT_S)
    with ours, theirs:
        ours.sendall(encode_frame(Start(EngineConfig(model="/no/such/model", step_log=str(pipe)))))
        assert EngineProcess(Channel(theirs), Heartbeat()).run() == 2
        reader: FrameReader[FromEngine] = FrameReader(FromEngine)
        assert reader.feed(ours.recv(1 << 16)) == [Failed(f"--step-log {pipe}: is not a regular file", 2)]


def test_a_full_disk_ends_the_log_and_not_the_engine(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    class FullDisk:
        def write(self, line: bytes) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

    written = StepLog(open_step_log(str(tmp_path / "steps.jsonl")), None)
    written._file = FullDisk()  # type: ignore[assignment]
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            written.begin()
            written._shape = StepShape(1, 1, 1, 0)
            written.end()
    assert caplog.messages == ["--step-log: no more steps are written: No space left on device"]
    written.added(Request(1, [5, 6], SamplingParams(max_tokens=4), arrival_s=0.75))
    assert written._added == []  # nothing is kept for lines that never come


def test_a_step_that_computed_nothing_is_no_line_and_its_requests_are_those_of_the_next(tmp_path: Path) -> None:
    path, times = tmp_path / "steps.jsonl", iter((1.0, 2.0, 2.5))
    written = StepLog(open_step_log(str(path)), None, lambda: next(times))
    written.begin()
    written.added(Request(1, [5, 6], SamplingParams(max_tokens=4), arrival_s=0.75))
    written.planned(StepPlan(()))
    written.end()
    written.begin()
    written._shape = StepShape(2, 1, 0, 3)
    written.end()
    assert msgspec.json.decode(path.read_bytes(), type=LoggedStep) == LoggedStep(
        2.0, 0.5, StepShape(2, 1, 0, 3), [LoggedRequest(0.75, 2, 4)]
    )


def test_a_line_that_is_written_in_part_ends_the_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    class AlmostFull:
        def write(self, line: bytes) -> int:
            return len(line) - 1

    written = StepLog(open_step_log(str(tmp_path / "steps.jsonl")), None)
    written._file = AlmostFull()  # type: ignore[assignment]
    for _ in range(2):
        written.begin()
        written._shape = StepShape(1, 1, 1, 0)
        written.end()
    assert caplog.messages == ["--step-log: no more steps are written: a line was written only in part"]


def test_a_last_line_without_an_end_is_not_read(tmp_path: Path) -> None:
    path, step = tmp_path / "steps.jsonl", LoggedStep(1.0, 0.5, StepShape(1, 1, 1, 0))
    line = msgspec.json.encode(step) + b"\n"
    for cut in (1, 10, len(line)):
        path.write_bytes(line + line[:-cut])
        assert read_step_log(path) == [step]
    for content in (line[:-10], line[:10] + b"\n", 2 * (line[:10] + b"\n") + line):
        path.write_bytes(content)
        with pytest.raises(MeasurementError, match=r"^is not a step log$"):
            read_step_log(path)


def test_a_log_that_a_full_disk_cut_is_read_after_the_next_start(tmp_path: Path) -> None:
    path, step = tmp_path / "steps.jsonl", LoggedStep(1.0, 0.5, StepShape(1, 1, 1, 0))
    line = msgspec.json.encode(step) + b"\n"
    path.write_bytes(3 * line + line[:-7])
    check_step_log(str(path))
    with open_step_log(str(path)) as file:
        assert path.read_bytes() == 3 * line + line[:-7]  # on a full disk not even an end of line can be written
        written = StepLog(file, None, iter((1.0, 1.5, 1.0, 1.5)).__next__)
        for _ in range(2):
            written.begin()
            written._shape = step.shape
            written.end()
    assert read_step_log(path) == 5 * [step]
    assert path.read_bytes() == 3 * line + line[:-7] + b"\n" + 2 * line
