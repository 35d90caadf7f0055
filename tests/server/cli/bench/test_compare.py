"""`smoe bench compare`: servers in turns, end to end over servers that answer without a model."""

import json
import sys

import pytest
from typer.testing import CliRunner

from server.cli.main import app
from tests.support.paths import FAKE_ENGINE_SERVER

FAKE = f"{sys.executable} {FAKE_ENGINE_SERVER} count port={{port}} served_model_name=m"
LOAD = ("--clients", "1,2", "--requests", "4", "--prompt-tokens", "4", "--output-tokens", "3", "--warmup", "1")


def test_servers_take_turns_under_the_same_load() -> None:
    result = CliRunner().invoke(
        app, ["bench", "compare", "--server", f"a={FAKE}", "--server", f"b={FAKE}", "--rounds", "2", "--json", *LOAD]
    )
    assert result.exit_code == 0, result.output
    figures = json.loads(result.stdout)
    order = [line.partition(":")[0] for line in result.stderr.splitlines() if "output tokens/s" in line]
    assert order == ["round 1, a", "round 1, b", "round 2, a", "round 2, b"]
    assert [(row["server"], row["clients"], row["errors"]) for row in figures["rows"]] == [
        ("a", 1, 0),
        ("a", 2, 0),
        ("b", 1, 0),
        ("b", 2, 0),
    ]
    runs = [[run["input_tokens"] for run in of_round["runs"]] for of_round in figures["rounds"]["a"]]
    assert runs == [[run["input_tokens"] for run in of_round["runs"]] for of_round in figures["rounds"]["b"]]
    assert all(of_round["peak_bytes"] > 10 << 20 for of_round in figures["rounds"]["a"])


@pytest.mark.parametrize(
    ("servers", "message"),
    [
        (["a=serve {port}"], "--server: give it twice or more, the server to compare with the others first"),
        (["a=x {port}", "a=y {port}"], "--server: the names should differ: a, a"),
        (["a=nowhere {port}", "b=nowhere {port}"], "a: nowhere: No such file or directory"),
        (["a=x {port}", "b"], "--server b: should be NAME=COMMAND, with {port} where the command takes its port"),
    ],
)
def test_what_cannot_be_compared_is_one_line(servers: list[str], message: str) -> None:
    flags = [word for server in servers for word in ("--server", server)]
    result = CliRunner().invoke(app, ["bench", "compare", *flags])
    assert (result.exit_code, result.stderr.strip()) == (2, f"smoe: {message}")
