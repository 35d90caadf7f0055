"""Exit codes of commands, and the report of an error: one line on standard error."""

import sys

import typer

from server.cli.colours import colours_of
from server.cli.terminal_text import escape_controls

EXIT_CODE = 2
INTERRUPTED = 130  # exit code after Ctrl-C


def report_error(error: Exception) -> int:
    """Print the error in one line and return the exit code."""
    typer.echo(f"{colours_of(sys.stderr).bad('smoe:')} {escape_controls(str(error))}", err=True, color=True)
    return EXIT_CODE


def report_logged_error(error: Exception, log_format: str) -> None:
    """Print the error in one line of the server's log."""
    if log_format != "json":
        report_error(error)
        return
    from server.observability.log_stream import json_line  # most commands write no log

    typer.echo(json_line(f"smoe: {error}"), err=True)
