"""server/cli/run_batch.py: what is checked before anything is sent, and the bar."""

import io
import json
import os
from pathlib import Path

import pytest

from server.batch.lines import BatchError
from server.batch.runner import Progress
from server.cli.run_batch import ProgressBar, run
from tests.support.terminal_stream import TerminalStream

LINE = json.dumps({"custom_id": "a", "method": "POST", "url": "/v1/completions", "body": {}})
NOWHERE = "http://127.0.0.1:1"


def test_a_terminal_gets_a_bar_and_other_output_one_line() -> None:
    now = [0.0]
    for out, num_drawn in ((TerminalStream(), 2), (io.StringIO(), 0)):
        now[0] = 0.0
        bar = ProgressBar(out, 100, clock=lambda: now[0])
        bar.draw(Progress(1000, 100))
        bar.update(Progress(1000, 150))  # too early
        now[0] = 10.0
        bar.update(Progress(1000, 600, 2))
        assert out.getvalue().count("\r") == num_drawn
        assert bar.text(Progress(1000, 600, 2)) == "[##############..........] 600 of 1,000, 2 failed, 50.0/s, 8 s left"
        bar.end(Progress(1000, 1000))
        assert out.getvalue().endswith("1,000 of 1,000, 90.0/s\x1b[K\n" if num_drawn else "1,000 of 1,000, 90.0/s\n")


@pytest.mark.parametrize(
    ("source", "earlier", "message"),
    [
        (None, None, "No such file"),
        ("{\n", None, "line 1: not a JSON object"),
        (LINE, '{"custom_id": "b"}\n', "has answers to other requests"),
        (LINE, "words\n", "not a line that a run has written"),
        (LINE, LINE + "\n", "not a line that a run has written"),
        (LINE, "my only notes", "line 1: not a line that a run has written"),
        (LINE, '{"my": "only copy"}', "line 1: not a line that a run has written"),
    ],
)
def test_nothing_is_sent_for_a_bad_input_or_output(
    tmp_path: Path, source: str | None, earlier: str | None, message: str
) -> None:
    paths = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    for path, text in zip(paths, (source, earlier), strict=True):
        if text is not None:
            path.write_text(text)
    with pytest.raises(BatchError, match=message):
        run(*paths, NOWHERE, None, 1)
    assert earlier is None or paths[1].read_text() == earlier


def test_the_input_is_never_the_output(tmp_path: Path) -> None:
    (tmp_path / "in").write_text(LINE)
    (tmp_path / "link").symlink_to("in")
    with pytest.raises(BatchError, match=r"link: is the input"):
        run(tmp_path / "in", tmp_path / "link", NOWHERE, None, 1)
    assert (tmp_path / "in").read_text() == LINE


def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "in")
    with pytest.raises(BatchError, match="a pipe can be read only once"):
        run(tmp_path / "in", tmp_path / "out", NOWHERE, None, 1)
    assert not (tmp_path / "out").exists()


def test_a_batch_that_is_done_needs_no_server(tmp_path: Path) -> None:
    (tmp_path / "in").write_text(LINE)
    (tmp_path / "out").write_text('{"custom_id": "a"}\n')
    assert run(tmp_path / "in", tmp_path / "out", NOWHERE, None, 4) == 0
