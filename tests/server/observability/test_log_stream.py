"""server/observability/log_stream.py: formats of log lines, and a reader that stops reading costs only lines."""

import json
import logging
import os
import time

import pytest

from server.observability.log_stream import JsonFormatter, json_line, logging_to
from tests.support.pipes import written


def test_a_traceback_stays_within_its_json_line(pipe: tuple[int, int]) -> None:
    with logging_to(pipe[1], style="json"):
        try:
            raise ValueError("inner")
        except ValueError:
            logging.getLogger("smoe.test").exception("it failed")
    [line] = written(*pipe)
    assert "ValueError: inner" in json.loads(line)["traceback"]


def test_times_have_the_form_of_rfc_3339_in_each_time_zone(monkeypatch: pytest.MonkeyPatch) -> None:
    record = logging.LogRecord("smoe.test", logging.INFO, "", 0, "text", None, None)
    record.created = 1_785_000_000.5
    for zone, expected in (("UTC", "2026-07-25T17:20:00+00:00"), ("Asia/Kolkata", "2026-07-25T22:50:00+05:30")):
        monkeypatch.setenv("TZ", zone)
        time.tzset()
        assert json.loads(JsonFormatter().format(record))["time"] == expected
    monkeypatch.undo()
    time.tzset()


@pytest.mark.parametrize(
    ("text", "level", "message"),
    [
        ("smoe 0.1.0 loads m", "info", "smoe 0.1.0 loads m"),
        ("WARNING: too little", "warning", "too little"),
        ("smoe: it failed", "error", "it failed"),
        ("smoe: /models/\udcff: gone", "error", "/models/\\udcff: gone"),
    ],
)
def test_lines_of_the_start_have_the_level_of_their_beginning(text: str, level: str, message: str) -> None:
    line = json.loads(json_line(text))
    assert (line["level"], line["message"]) == (level, message)


def test_dropped_lines_are_reported_in_json_too(pipe: tuple[int, int]) -> None:
    with logging_to(pipe[1], style="json") as stream:
        stream.num_dropped = 3
        logging.getLogger("smoe.test").warning("written")
    assert [json.loads(line)["message"].split()[0] for line in written(*pipe)] == ["written", "3"]


def test_lines_below_the_level_and_uvicorns_chatter_are_left_out(pipe: tuple[int, int]) -> None:
    with logging_to(pipe[1], level="info"):
        logging.getLogger("smoe.test").debug("hidden")
        logging.getLogger("uvicorn.error").warning("hidden: a client can cause it at will")
        logging.getLogger("uvicorn.error").error("shown")
    assert [line.split(" ", 1)[1] for line in written(*pipe)] == ["ERROR shown"]


def test_a_pipe_that_nobody_reads_never_blocks_and_dropped_lines_are_reported(pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    with logging_to(writer, queue_length=10) as handler:
        for number in range(5000):  # more than pipe and queue hold; the rate of info lines is not limited
            logging.getLogger("smoe.test").info("%d %s", number, "x" * 100)
        assert handler.num_dropped > 0
        os.set_blocking(reader, False)
        received = b""
        while b"dropped" not in received:
            try:
                received += os.read(reader, 1 << 16)
            except BlockingIOError:
                logging.getLogger("smoe.test").info("again")
    [report] = [line for line in received.decode().splitlines() if "dropped" in line][:1]
    assert int(report.split()[0]) > 0


def test_a_closed_pipe_is_no_error(pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    os.close(reader)
    with logging_to(writer) as handler:
        logging.getLogger("smoe.test").warning("into the void")
    assert handler.num_dropped == 0
