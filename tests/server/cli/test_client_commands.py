"""The server that `smoe chat` and `smoe complete` talk to without --url."""

import pytest
from typer.testing import CliRunner

from server.cli.main import app

pytestmark = pytest.mark.usefixtures("clean_environment")


@pytest.mark.parametrize(
    ("variables", "address"),
    [
        ({"SMOE_HOST": "127.0.0.1", "SMOE_PORT": "1"}, "127.0.0.1:1"),
        ({"SMOE_HOST": "::1", "SMOE_PORT": "1"}, "[::1]:1"),
    ],
)
def test_the_address_is_that_of_the_settings(
    variables: dict[str, str], address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    result = CliRunner().invoke(app, ["complete", "It was"])
    assert result.exit_code == 2
    assert f"no server at {address} " in result.stderr and "smoe serve" in result.stderr


def test_an_invalid_setting_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SMOE_PORT", "many")
    for arguments in (["complete", "It was"], ["chat"], ["doctor"]):
        result = CliRunner().invoke(app, arguments)
        assert (result.exit_code, result.stdout) == (2, "")
        assert result.stderr.startswith("smoe: SMOE_PORT: ") and result.stderr.count("\n") == 1
