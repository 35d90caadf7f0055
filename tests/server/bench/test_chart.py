"""Charts of results, and results that cannot be drawn."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from server.bench import chart
from server.cli.main import app


def command(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["bench", *arguments])


def result_file(path: Path, label: str, rates: dict[int, float]) -> Path:
    runs = [{"clients": clients, "output_tokens_per_s": rate} for clients, rate in rates.items()]
    path.write_text(json.dumps({"kind": "serve", "label": label, "runs": runs}))
    return path


def test_several_servers_are_drawn_into_one_chart(tmp_path: Path) -> None:
    files = [result_file(tmp_path / f"{name}.json", name, {16: 90.0, 1: 10.0}) for name in ("one", "two")]
    assert chart.points(chart.read(files[0])) == [(1, 10.0), (16, 90.0)]
    picture = tmp_path / "chart.svg"
    result = command("chart", *map(str, files), "--plot", str(picture))
    assert result.exit_code == 0, result.output
    assert picture.read_text().count("<!-- one -->") == picture.read_text().count("<!-- two -->") == 1


def test_without_matplotlib_a_plot_is_rejected_before_the_measurement(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    result = command("serve", "http://127.0.0.1:1", "--plot", "x.png")
    assert result.exit_code == 2
    assert "pip install 'smoe[bench]'" in result.stderr


def test_a_file_of_another_command_is_rejected(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    file.write_text('{"kind": "kernels"}')
    assert "smoe bench serve --json" in command("chart", str(file), "--plot", "x.png").stderr
