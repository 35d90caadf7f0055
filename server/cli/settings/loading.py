"""Settings of a command, with a warning for each variable that has no effect."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import typer

from server.cli.terminal_text import escape_controls
from server.settings import sources
from server.settings.settings import Settings


def load_settings(flags: Mapping[str, Any], config: Path | None = None) -> Settings:
    """Return the settings, and print a line on standard error for each unknown SMOE_* variable.

    Raises SettingsError.
    """
    settings = sources.load_settings(flags, config)
    for line in sources.unknown_variables():
        typer.echo(_warning(line, settings.log_format), err=True)
    return settings


def _warning(line: str, log_format: str) -> str:
    if log_format != "json":
        return f"smoe: warning: {escape_controls(line)}"
    from server.observability.log_stream import json_line  # most commands write no log

    return json_line(f"WARNING: {line}")
