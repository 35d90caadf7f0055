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


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        ("--plot {}/none/x.png", "no such folder"),
        ("--plot {}", "no file can be written there"),
        ("--plot {}/x.nope", "the name should end in one of"),
        ("--plot {}/x.png --rate 2", "neither --rate nor --trace"),
        ("--plot {}/x.png --trace {}/x.jsonl", "neither --rate nor --trace"),
    ],
)
def test_a_plot_that_cannot_be_drawn_is_rejected_before_the_measurement(
    arguments: str, part: str, tmp_path: Path
) -> None:
    result = command("serve", "http://127.0.0.1:1", *arguments.replace("{}", str(tmp_path)).split())
    assert (result.exit_code, result.stdout) == (2, "")
    assert part in result.stderr and len(result.stderr.splitlines()) == 1, result.stderr


def test_the_figures_are_printed_even_if_the_plot_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def measured(*_: object) -> dict[str, object]:
        return {"label": "one", "interrupted": False, "runs": [{"clients": 1, "output_tokens_per_s": 9.0, "errors": 0}]}

    def full(*_: object) -> None:
        raise chart.ChartError("--plot: No space left on device")

    monkeypatch.setattr("server.bench.serve.measure", measured)
    monkeypatch.setattr(chart, "draw", full)
    result = command("serve", "http://127.0.0.1:1", "--json", "--plot", str(tmp_path / "x.png"))
    assert json.loads(result.stdout)["runs"][0]["output_tokens_per_s"] == 9.0
    assert (result.exit_code, result.stderr) == (2, "smoe: --plot: No space left on device\n")
