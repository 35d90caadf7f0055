"""server/engine_client/stderr_log.py: bytes of the engine's standard error become lines of the server's log."""

import logging

import pytest

from server.engine_client.stderr_log import MAX_LINE_BYTES, StderrLog


def logged(caplog: pytest.LogCaptureFixture, *chunks: bytes) -> list[tuple[str, int, str]]:
    with caplog.at_level(logging.DEBUG):
        log = StderrLog()
        for chunk in chunks:
            log.data_received(chunk)
        log.connection_lost(None)
    return caplog.record_tuples


def test_lines_keep_their_logger_and_level_and_a_traceback_that_of_its_line(caplog: pytest.LogCaptureFixture) -> None:
    first = b"INFO smoe.engine: it loads\nERROR smoe.step: it failed\n"
    assert logged(caplog, first + b"Traceback (most recent call last):\nValueError: 100 %s\n") == [
        ("smoe.engine", logging.INFO, "it loads"),
        ("smoe.step", logging.ERROR, "it failed"),
        ("smoe.step", logging.ERROR, "Traceback (most recent call last):"),
        ("smoe.step", logging.ERROR, "ValueError: 100 %s"),
    ]


def test_what_a_library_writes_is_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    assert logged(caplog, b"Segmentation fault") == [("smoe.engine", logging.WARNING, "Segmentation fault")]


def test_lines_are_cut_at_newlines_and_not_where_the_pipe_does(caplog: pytest.LogCaptureFixture) -> None:
    text = "WARNING smoe.engine: caf\u00e9\nplain\n".encode()
    whole = logged(caplog, text)
    caplog.clear()
    assert logged(caplog, *(bytes([byte]) for byte in text)) == whole


def test_a_line_without_an_end_takes_bounded_memory(caplog: pytest.LogCaptureFixture) -> None:
    lines = logged(caplog, *[b"\xff" * 1000] * 100)
    assert len(lines) > 1
    assert max(len(text) for _, _, text in lines) <= 4 * (MAX_LINE_BYTES + 1000)
