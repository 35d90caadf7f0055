"""Shell completion: for the shell that is named, whatever started the command, and by the interface of typer used."""

import inspect
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from typer import _completion_shared
from typer.core import TyperCommand

from server.cli import main
from tests.server.cli.test_main import smoe
from tests.support.paths import ROOT

SCRIPTS = {
    "bash": "complete -o default -F _smoe_completion smoe",
    "zsh": "compdef _smoe_completion smoe",
    "fish": "complete --command smoe",
}


def below_sh(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run the command as a child of sh, which typer has no script for; `; :` keeps sh from replacing itself."""
    command = shlex.join([sys.executable, "-m", "server", *arguments])
    return subprocess.run(
        ["sh", "-c", f"{command}; exit $?"],
        cwd=ROOT,
        env=os.environ | variables,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize("shell", SCRIPTS)
def test_the_script_of_a_named_shell_is_shown_below_any_parent(shell: str) -> None:
    for result in (smoe("--show-completion", shell), below_sh("--show-completion", shell)):
        assert result.returncode == 0
        assert SCRIPTS[shell] in result.stdout


def test_the_script_of_a_named_shell_is_installed_below_any_parent(tmp_path: Path) -> None:
    result = below_sh("--install-completion", "bash", HOME=str(tmp_path))
    assert result.returncode == 0, result.stderr
    script = tmp_path / ".bash_completions" / "smoe.sh"
    assert str(script) in result.stdout
    assert SCRIPTS["bash"] in script.read_text()
    assert str(script) in (tmp_path / ".bashrc").read_text()


@pytest.mark.parametrize("option", ["--show-completion", "--install-completion"])
def test_an_unknown_shell_is_an_error(option: str, tmp_path: Path) -> None:
    result = below_sh(option, "csh", HOME=str(tmp_path))
    assert result.returncode == 1
    assert "csh" in result.stdout + result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("words", "offered"), [("smoe do", ["doctor"]), ("smoe serve --max-model", ["--max-model-len"])], ids=str
)
def test_the_shell_completes_commands_and_flags_of_settings(words: str, offered: list[str]) -> None:
    position = str(len(words.split()) - 1)
    result = smoe(_SMOE_COMPLETE="complete_bash", COMP_WORDS=words, COMP_CWORD=position)
    assert result.stdout.split() == offered


def test_the_interface_of_typer_that_is_used_exists() -> None:
    """Typer does not document these; pyproject.toml therefore has an upper bound for it."""
    for function, names in (
        (TyperCommand.get_params, ["self", "ctx"]),
        (TyperCommand.invoke, ["self", "ctx"]),
        (_completion_shared.get_completion_script, ["prog_name", "complete_var", "shell"]),
        (_completion_shared.install, ["shell", "prog_name", "complete_var"]),
    ):
        assert list(inspect.signature(function).parameters) == names
    assert main.USAGE_ERROR is typer.BadParameter.__base__
    assert callable(main.USAGE_ERROR.format_message)
    assert callable(typer.main.get_command)


def test_a_home_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    result = smoe("--install-completion", "bash", HOME=str(tmp_path / "file"))
    assert result.returncode == 2
    [line] = result.stderr.splitlines()
    assert line == f"smoe: {tmp_path / 'file'}: File exists"
