"""The command as a process: help, version, and one line for what cannot start."""

import inspect
import os
import subprocess
import sys

import pytest

from server.cli.main import serve_command
from server.settings import Settings
from tests.support.paths import ROOT


def smoe(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SMOE_")}
    return subprocess.run(
        [sys.executable, "-m", "server", *arguments],
        cwd=ROOT,
        env=environment | variables,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_every_setting_has_a_flag_and_every_flag_a_setting() -> None:
    assert set(inspect.signature(serve_command).parameters) - {"config", "print_config"} == set(Settings.model_fields)


@pytest.mark.parametrize("arguments", [("--help",), ("serve", "--help"), ("--version",)])
def test_help_loads_nothing_heavy(arguments: tuple[str, ...]) -> None:
    script = (
        "import sys\n"
        f"sys.argv = ['smoe', *{arguments!r}]\n"
        "from server.cli.main import main\n"
        "try:\n"
        "    main()\n"
        "finally:\n"
        "    heavy = {'torch', 'fastapi', 'pydantic_settings', 'uvicorn', 'msgspec'} & set(sys.modules)\n"
        "    assert not heavy, heavy\n"
    )
    result = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout


def test_help_names_every_flag() -> None:
    shown = smoe("serve", "--help").stdout
    for name in Settings.model_fields.keys() - {"model"}:
        assert f"--{name.replace('_', '-')}" in shown


@pytest.mark.parametrize(
    ("arguments", "variables", "part"),
    [
        (("serve", "--port", "70000"), {}, "--port: "),
        (("serve",), {"SMOE_PORT": "tcp://10.0.0.1:8000"}, "enableServiceLinks"),
        (("serve", "/no/where"), {}, "/no/where"),
        (("serve", "org/name"), {"HF_HOME": "/no/where"}, "hf download org/name"),
        (("serve", "--config", "/no/where.yaml"), {}, "/no/where.yaml"),
    ],
)
def test_what_cannot_start_exits_2_with_one_line(
    arguments: tuple[str, ...], variables: dict[str, str], part: str
) -> None:
    result = smoe(*arguments, **variables)
    assert result.returncode == 2
    [line] = result.stderr.splitlines()
    assert line.startswith("smoe: ")
    assert part in line


def test_an_unknown_flag_exits_2() -> None:
    result = smoe("serve", "--no-such-flag")
    assert result.returncode == 2
    assert "--no-such-flag" in result.stderr


def test_the_configuration_is_printed_with_where_it_comes_from_and_nothing_starts() -> None:
    result = smoe("serve", "--print-config", "--port", "1", "--api-key", "hush", SMOE_HOST="::1")
    rows = {line.split()[0]: line.split()[1:] for line in result.stdout.splitlines()}
    assert result.returncode == 0
    assert rows["port"] == ["1", "--port"] and rows["host"] == ["::1", "SMOE_HOST"]
    assert rows["log-level"] == ["info", "default"]
    assert "hush" not in result.stdout


def test_the_shell_completes_commands() -> None:
    assert "complete -o default -F _smoe_completion smoe" in smoe("--show-completion", "bash").stdout
    offered = smoe(_SMOE_COMPLETE="complete_bash", COMP_WORDS="smoe do", COMP_CWORD="1").stdout
    assert offered.split() == ["doctor"]


@pytest.mark.parametrize("arguments", [("serve", "--nope"), ("serve", "--port"), ("nope",)], ids=str)
def test_a_command_line_that_is_none_gets_one_line_and_exit_code_2(arguments: tuple[str, ...]) -> None:
    refused = smoe(*arguments)
    assert refused.returncode == 2
    assert refused.stderr.startswith("smoe: ") and refused.stderr.count("\n") == 1
    assert "Traceback" not in refused.stderr
