"""Commands that take settings of the server as options, generated from the fields of `Settings`."""

import inspect
from collections.abc import Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

if TYPE_CHECKING:
    from server.settings.flags import SettingFlag


def settings_command(*names: str) -> type[TyperCommand]:
    """Return a class of commands with options for these settings, or for all of them without `names`.

    The command's function takes a typer.Context and passes it to `given_settings`. The options are generated when the
    command is run or its help is shown: `smoe --help` need not import pydantic.
    """

    class SettingsCommand(TyperCommand):
        def get_params(self, ctx: Any) -> list[Any]:
            return [*_parameters(names), *super().get_params(ctx)]

        def format_options(self, ctx: Any, formatter: Any) -> None:
            """Write the settings by group, as docs/configuration.md does, and the command's own options last."""
            for title, records in _by_group(self.get_params(ctx), ctx).items():
                with formatter.section(title):
                    formatter.write_dl(records)

        def invoke(self, ctx: Any) -> Any:
            given = {parameter.name: ctx.params.pop(parameter.name) for parameter in _parameters(names)}
            ctx.obj = {name: _plain(value) for name, value in given.items() if value not in (None, [], ())}
            return super().invoke(ctx)

    return SettingsCommand


def given_settings(context: typer.Context) -> Mapping[str, Any]:
    """Return the settings that the command line gave, by field name, still as text."""
    given: dict[str, Any] = context.obj
    return given


def _by_group(parameters: Sequence[Any], ctx: Any) -> dict[str, list[tuple[str, str]]]:
    """Return the lines of the help, (flag, text), by the titles of their sections."""
    from server.settings.flags import setting_flags

    group_of = {flag.name: flag.group for flag in setting_flags()}
    sections: dict[str, list[tuple[str, str]]] = {}
    for parameter in parameters:
        if record := parameter.get_help_record(ctx):
            title = "Arguments" if parameter.param_type_name == "argument" else group_of.get(parameter.name, "Options")
            name, text = record
            sections.setdefault(title, []).append((name.removesuffix(" <str>"), text))
    return {title: sections[title] for title in sorted(sections, key=lambda title: title == "Options")}


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
