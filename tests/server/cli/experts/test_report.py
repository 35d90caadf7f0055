"""Tables and JSON of `smoe experts`."""

import json
from pathlib import Path

import pytest

from server.cli.experts.measurement import ExpertTextError, SweepPoint
from server.cli.experts.report import _save, count_json, count_table, sweep_table


def test_the_table_marks_the_expert_with_most_tokens_of_each_text() -> None:
    table = count_table({"prose": [[1, 3], [2, 2]], "code": [[4, 0], [0, 0]]}).splitlines()
    assert [line.split() for line in table] == [
        ["layer", "text", "e0", "e1"],
        ["0", "prose", "25.0%", "75.0%*"],
        ["0", "code", "100.0%*", "0.0%"],
        ["1", "prose", "50.0%*", "50.0%*"],
        ["1", "code", "0.0%", "0.0%"],
    ]


def test_the_json_has_tokens_and_shares_of_each_text() -> None:
    assert json.loads(count_json({"prose": [[3, 1], [0, 0]]})) == {
        "texts": {"prose": {"tokens": [[3, 1], [0, 0]], "share": [[0.75, 0.25], [0.0, 0.0]]}}
    }


def test_a_sweep_has_a_line_per_number_of_experts() -> None:
    points = [SweepPoint(k, {"prose": 10.0 / k}, 1000.0 * k, 100.0 * k) for k in (1, 2)]
    lines = [line.split() for line in sweep_table(points).splitlines()]
    assert lines[1:3] == [["1", "1,000", "100", "10.00"], ["2", "2,000", "200", "5.00"]]
    assert lines[0][-1] == "prose"


def test_a_picture_that_cannot_be_written_is_reported_without_an_errno_too() -> None:
    class Figure:
        def savefig(self, path: Path, dpi: int) -> None:
            raise OSError("the encoder failed")

    with pytest.raises(ExpertTextError, match=r"--png a\.png: the encoder failed"):
        _save(Figure(), Path("a.png"))
