"""server/bench/progress.py: a line that is redrawn on a terminal, one line elsewhere."""

import io

from server.bench.progress import RunProgress
from tests.support.terminal_stream import TerminalStream


def shown(out: io.StringIO) -> str:
    now = [0.0]
    progress = RunProgress(out, "here: 2 clients", 3, clock=lambda: now[0])
    for seconds in (0.1, 0.3, 0.35):
        now[0] = seconds
        progress.request_ended()
    progress.end()
    return out.getvalue()


def test_a_terminal_shows_how_many_requests_have_ended_and_is_left_clean() -> None:
    drawn = shown(TerminalStream()).split("\r")
    assert drawn == ["here: 2 clients, 3 requests", "here: 2 clients, 2 of 3 requests\x1b[K", "\x1b[K"]


def test_a_file_gets_one_line_per_run() -> None:
    assert shown(io.StringIO()) == "here: 2 clients, 3 requests\n"
