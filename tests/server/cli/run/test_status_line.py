"""The line that shows a start: replaced, escaped, removed, and only on a terminal."""

import io

from server.cli.run.status_line import StatusLine


def test_the_line_is_replaced_and_removed() -> None:
    seconds = iter([10.0, 12.4, 13.6])
    stream = io.StringIO()
    line = StatusLine(stream, is_on=True, clock=lambda: next(seconds))
    line.show("weights 40%")
    line.show("weights\x07 80%")
    line.clear()
    assert stream.getvalue() == "\r\x1b[K⠋ weights 40%, 2 s\r\x1b[K⠙ weights\\x07 80%, 4 s\r\x1b[K"


def test_a_file_gets_nothing() -> None:
    stream = io.StringIO()
    line = StatusLine(stream, is_on=False)
    line.show("weights 40%")
    line.clear()
    assert stream.getvalue() == ""
