"""The help of every command has an example that is a valid command line of it, and no Python type."""

import re
import shlex
from collections.abc import Iterator
from typing import Any

import pytest
import typer.main

from server.cli.main import app


def commands(command: Any, names: tuple[str, ...] = ("smoe",)) -> Iterator[Any]:
    """Yield the names and the command of everything that can be run."""
    children = getattr(command, "commands", {})
    for name, child in children.items():
        yield from commands(child, (*names, name))
    if not children:
        yield pytest.param(names, command, id=" ".join(names))


ALL = list(commands(typer.main.get_command(app)))


def help_of(names: tuple[str, ...], command: Any) -> str:
    context = typer.Context(command, info_name=" ".join(names))
    return str(command.get_help(context))


def examples(names: tuple[str, ...], command: Any) -> list[list[str]]:
    """Return the arguments of the example lines: those that begin with the command's name."""
    pattern = re.compile(rf"^ *{' '.join(names)}( .*)?$", re.MULTILINE)
    text = re.sub(r"\\\n *", "", help_of(names, command))  # lines that go on
    lines = [match.group().partition("  #")[0] for match in pattern.finditer(text)]
    return [shlex.split(line)[len(names) :] for line in lines]


def test_there_are_commands() -> None:
    assert len(ALL) >= 15


@pytest.mark.parametrize(("names", "command"), ALL)
def test_the_help_has_an_example_with_flags_that_exist(names: tuple[str, ...], command: Any) -> None:
    found = examples(names, command)
    assert found, help_of(names, command)
    flags = {
        flag
        for parameter in command.get_params(typer.Context(command))
        for flag in (*parameter.opts, *parameter.secondary_opts)
    }
    for arguments in found:
        assert {word.partition("=")[0] for word in arguments if word.startswith("-")} <= flags


@pytest.mark.parametrize(("names", "command"), ALL)
def test_the_help_says_values_in_words(names: tuple[str, ...], command: Any) -> None:
    text = help_of(names, command)
    assert not re.search(r"<(str|int|float|path|bool)\b|\bINTEGER\b|\bPATH\b|Optional\[", text), text
