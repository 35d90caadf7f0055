"""Help of commands with words for values, as in --url TEXT, where typer writes Python's types, as in --url <str>."""

import re
from typing import Any

from typer.core import TyperCommand

WORDS = {"str": "TEXT", "int": "N", "float": "NUMBER", "path": "FILE"}
_TYPE = re.compile(rf" <({'|'.join(WORDS)})(?: range)?>")


class WordsCommand(TyperCommand):
    """A command whose help names values in words."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write the sections of the help: arguments, then options."""
        for title, records in self.sections(ctx).items():
            with formatter.section(title):
                formatter.write_dl(records)

    def sections(self, ctx: Any) -> dict[str, list[tuple[str, str]]]:
        """Return the lines of the help, (flag and value, text), by the titles of their sections."""
        found: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            if record := parameter.get_help_record(ctx):
                name, text = record
                found.setdefault(self.title_of(parameter), []).append((in_words(name), text))
        return found

    def title_of(self, parameter: Any) -> str:
        """Return the title of a parameter's section."""
        return "Arguments" if parameter.param_type_name == "argument" else "Options"


def in_words(name: str) -> str:
    """Return "--url <str>" as "--url TEXT", and "PROMPT <str>", which has its word, as "PROMPT"."""
    if name.startswith("-"):
        return _TYPE.sub(lambda match: f" {WORDS[match[1]]}", name)
    return _TYPE.sub("", name)
