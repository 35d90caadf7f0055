"""Log lines: what stands in them, and that a reader who stops reading costs lines only."""

import json
import logging
import os
from collections.abc import Iterator

import pytest

from engine.types import Timing
from server.observability.access_log import AccessLog
from server.observability.log_stream import logging_to


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    reader, writer = os.pipe()
    yield reader, writer
    for fd in (reader, writer):
        try:
            os.close(fd)
        except OSError:
            continue


def written(reader: int, writer: int) -> list[str]:
    os.close(writer)
    with os.fdopen(reader, "rb", closefd=False) as stream:
        return stream.read().decode().splitlines()


def log_one(outcome: str = "stop", finished_s: float | None = 12.0) -> None:
    AccessLog(clock=lambda: 13.0).finished(
        "req-1",
        outcome,  # type: ignore[arg-type]
        num_prompt_tokens=7,
        num_generation_tokens=3,
        num_cached_tokens=5,
        timing=Timing(10.0, 10.25, 10.5, finished_s),
    )


def test_a_finished_request_is_one_line_of_text(pipe: tuple[int, int]) -> None:
    with logging_to(pipe[1]):
        log_one()
    [line] = written(*pipe)
    assert line.split(" ", 1)[1] == (
        "INFO request finished request_id=req-1 outcome=stop prompt_tokens=7 generation_tokens=3 cached_tokens=5 "
        "queue_s=0.25 ttft_s=0.5 total_s=2.0"
    )


def test_a_finished_request_is_one_json_object(pipe: tuple[int, int]) -> None:
    with logging_to(pipe[1], style="json"):
        log_one("abort", finished_s=None)
    [line] = written(*pipe)
    fields = json.loads(line)
    assert fields["request_id"] == "req-1"
    assert fields["outcome"] == "abort"
    assert (fields["prompt_tokens"], fields["generation_tokens"], fields["cached_tokens"]) == (7, 3, 5)
    assert (fields["queue_s"], fields["ttft_s"], fields["total_s"]) == (0.25, 0.5, 3.0)
    assert fields["level"] == "info"


def test_a_traceback_stays_within_its_json_line(pipe: tuple[int, int]) -> None:
    with logging_to(pipe[1], style="json"):
        try:
            raise ValueError("inner")
        except ValueError:
            logging.getLogger("smoe.test").exception("it failed")
    [line] = written(*pipe)
    assert "ValueError: inner" in json.loads(line)["traceback"]


def test_lines_below_the_level_and_uvicorns_chatter_are_left_out(pipe: tuple[int, int]) -> None:
    with logging_to(pipe[1], level="info"):
        logging.getLogger("smoe.test").debug("hidden")
        logging.getLogger("uvicorn.error").warning("hidden: a client can cause it at will")
        logging.getLogger("uvicorn.error").error("shown")
    assert [line.split(" ", 1)[1] for line in written(*pipe)] == ["ERROR shown"]


def test_a_pipe_that_nobody_reads_never_blocks_and_its_drops_are_told(pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    with logging_to(writer, queue_length=10) as handler:
        for number in range(5000):  # far beyond what pipe and queue hold
            logging.getLogger("smoe.test").warning("%d %s", number, "x" * 100)
        assert handler.num_dropped > 0
        os.set_blocking(reader, False)
        received = b""
        while b"dropped" not in received:
            try:
                received += os.read(reader, 1 << 16)
            except BlockingIOError:
                logging.getLogger("smoe.test").warning("again")
    [told] = [line for line in received.decode().splitlines() if "dropped" in line][:1]
    assert int(told.split()[0]) > 0


def test_a_closed_pipe_is_no_error(pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    os.close(reader)
    with logging_to(writer) as handler:
        logging.getLogger("smoe.test").warning("into the void")
    assert handler.num_dropped == 0
