"""`smoe serve`, from its flags to its exit code."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import typer

from server.cli.errors import report_error, report_logged_error
from server.cli.settings.loading import load_settings
from server.lifecycle.restart.early_hangup import note_hangups
from server.settings.settings import Settings
from server.settings.sources import SettingsError, launcher_attempt, origins


def run(flags: Mapping[str, Any], config: Path | None, started_s: float) -> int:
    """Serve until a signal and return the exit code; 2 if the server cannot start.

    `started_s`: time.monotonic() when the command began.
    """
    hangup = note_hangups()
    try:
        settings = load_settings(flags, config)
    except SettingsError as error:
        return report_error(error)
    from server.lifecycle.errors import StartError  # only now: a wrong flag is reported without what follows

    attempt = launcher_attempt(settings)
    try:
        if settings.node_rank:
            from server.lifecycle.node import serve_node

            return serve_node(settings, attempt, hangup)
        from server.lifecycle.serve import serve

        return serve(settings, started_s, launcher_attempt=attempt, hangup=hangup)
    except StartError as error:
        report_logged_error(error, settings.log_format)
        return error.exit_code


def print_config(flags: Mapping[str, Any], config: Path | None) -> int:
    """Print each setting, its value and its source; return the exit code."""
    try:
        settings = load_settings(flags, config)
        sources = origins(flags, config)
    except SettingsError as error:
        return report_error(error)
    for name, source in sources.items():
        typer.echo(f"{name.replace('_', '-'):<26} {format_setting(settings, name):<24} {source}")
    return 0


def format_setting(settings: Settings, name: str) -> str:
    """Return a setting's value in one line. Keys stay secret; a value that is derived at start is "-"."""
    value = getattr(settings, name)
    if value in (None, (), "", {}):
        return "-"
    if name == "api_key":
        return f"{len(value)} of them"
    if isinstance(value, dict):
        return json.dumps(value)
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
