"""`smoe --install-completion SHELL` and `smoe --show-completion SHELL`.

Typer's own options have no argument: they detect the shell from the parent process, which fails below make, in
containers, and in shells that typer does not know. Without SHELL, typer's own options run.
"""

from collections.abc import Sequence

import typer

from server.cli.errors import report_error

PROGRAM, VARIABLE = "smoe", "_SMOE_COMPLETE"
INSTALL, SHOW = "--install-completion", "--show-completion"


def run(arguments: Sequence[str]) -> int | None:
    """Execute one of the two options if a shell is named; return the exit code, or None for any other command line."""
    if len(arguments) != 2 or arguments[0] not in (INSTALL, SHOW) or arguments[1].startswith("-"):
        return None
    from typer._completion_shared import get_completion_script, install

    option, shell = arguments
    try:
        if option == SHOW:
            typer.echo(get_completion_script(prog_name=PROGRAM, complete_var=VARIABLE, shell=shell))
        else:
            _, path = install(shell, PROGRAM, VARIABLE)
            typer.echo(f"{path}: completion for {shell} is installed; it works in new shells")
    except OSError as error:
        return report_error(ValueError(f"{error.filename}: {error.strerror}"))
    except typer.Exit as exit:  # an unknown shell; typer has printed the reason
        return exit.exit_code
    return 0
