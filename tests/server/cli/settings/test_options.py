"""Commands with generated options hand over what the command line gave, and nothing else."""

from collections.abc import Mapping
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from server.cli.settings.options import given_settings, settings_command


def given(*arguments: str, names: tuple[str, ...] = ()) -> tuple[Mapping[str, Any], bool]:
    """Return the settings and the value of an option of the command's own."""
    app, seen = typer.Typer(), []

    @app.command(cls=settings_command(*names))
    def command(context: typer.Context, own: bool = False) -> None:
        seen.append((given_settings(context), own))

    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    return seen[0]


def test_values_stay_text_and_what_is_not_given_is_absent() -> None:
    arguments = ("/model", "--port", "1", "--api-key", "a", "--api-key", "b", "--verify", "--own")
    expected = {"model": "/model", "port": "1", "api_key": ["a", "b"], "verify": True}
    assert given(*arguments) == (expected, True)
    assert given() == ({}, False)


def test_a_command_may_take_some_settings_alone() -> None:
    assert given("--dtype", "float32", names=("dtype",)) == ({"dtype": "float32"}, False)
    with pytest.raises(AssertionError, match="No such option"):
        given("--port", "1", names=("dtype",))
