"""Reports errors of commands: one line on standard error, exit code 2."""

import typer

EXIT_CODE = 2


def report_error(error: Exception) -> int:
    """Print the error in one line and return the exit code."""
    typer.echo(f"smoe: {error}", err=True)
    return EXIT_CODE
