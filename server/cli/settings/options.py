"""Commands that take settings of the server as options, generated from the fields of `Settings`."""

import inspect
from collections.abc import Mapping
from functools import cache
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

from server.cli.help_text import WordsCommand

if TYPE_CHECKING:
    from server.settings.flags import SettingFlag


def settings_command(*names: str) -> type[TyperCommand]:
    """Return a class of commands with options for these settings, or for all of them without `names`.

    The command's function takes a typer.Context and passes it to `given_settings`. The options are generated when the
    command is run or its help is shown: `smoe --help` need not import pydantic.
    """

    class SettingsCommand(WordsCommand):
        def get_params(self, ctx: Any) -> list[Any]:
            return [*_parameters(names), *super().get_params(ctx)]

        def sections(self, ctx: Any) -> dict[str, list[tuple[str, str]]]:
            found = super().sections(ctx)  # the command's own options come last
            return {title: found[title] for title in sorted(found, key=lambda title: title == "Options")}

        def title_of(self, parameter: Any) -> str:
            """Return the setting's group, as in docs/configuration.md."""
            title = super().title_of(parameter)
            return title if title == "Arguments" else _groups().get(parameter.name, title)

        def invoke(self, ctx: Any) -> Any:
            given = {parameter.name: ctx.params.pop(parameter.name) for parameter in _parameters(names)}
            ctx.obj = {name: _plain(value) for name, value in given.items() if value not in (None, [], ())}
            return super().invoke(ctx)

    return SettingsCommand


def given_settings(context: typer.Context) -> Mapping[str, Any]:
    """Return the settings that the command line gave, by field name, still as text."""
    given: dict[str, Any] = context.obj
    return given


@cache
def _groups() -> dict[str, str]:
    """Return the title of each setting's group."""
    from server.settings.flags import setting_flags

    return {flag.name: flag.group for flag in setting_flags()}


def _plain(value: object) -> object:
    return list(value) if isinstance(value, tuple) else value  # a repeated option: a tuple in older versions of typer


@cache
def _parameters(names: tuple[str, ...]) -> list[Any]:
    """Return typer's parameters for these settings, taken from a command with a generated signature."""
    from server.settings.flags import setting_flags

    def generated(**_: Any) -> None: ...

    flags = [flag for flag in setting_flags() if flag.name in names or not names]
    generated.__signature__ = inspect.Signature(list(map(_parameter, flags)))  # type: ignore[attr-defined]
    app = typer.Typer(add_completion=False)
    app.command()(generated)
    return list(typer.main.get_command(app).params)


def _parameter(flag: "SettingFlag") -> inspect.Parameter:
    """Return a keyword of the generated signature. Values stay text: Settings validates flags, variables and files."""
    kind: Any = bool | None if flag.is_switch else list[str] | None if flag.is_repeatable else str | None
    if flag.name == "model":
        declared: Any = typer.Argument(help=flag.help_text, metavar="MODEL", show_default=False)
    else:
        declared = typer.Option(flag.flag, help=flag.help_text, metavar=flag.metavar or None, show_default=False)
    annotation = Annotated[kind, declared]
    return inspect.Parameter(flag.name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)
