"""`smoe run`: chat with a model in one command. Starts a server unless one serves the model already."""

import contextlib
import signal
import sys
from collections.abc import Iterator, Mapping
from typing import Annotated, Any

import typer

from server.cli.client_commands import (
    ExpertsFlag,
    SeedFlag,
    StatsFlag,
    SystemFlag,
    TemperatureFlag,
    TokensFlag,
    chat_with,
    client_of,
    without_none,
    write_answer,
)
from server.cli.errors import EXIT_CODE, report_error
from server.cli.settings.options import given_settings, settings_command

SETTINGS = ("model", "rope_theta", "max_model_len", "dtype", "quantization", "threads")
LOG_NAME = "run.log"
ENDING_SIGNALS = (signal.SIGTERM, signal.SIGHUP)


def add_to(app: typer.Typer) -> None:
    """Register the command with `app`."""
    app.command("run", cls=settings_command(*SETTINGS), short_help="Chat with a model in one command.")(run_command)


def run_command(
    context: typer.Context,
    prompt: Annotated[
        str | None,
        typer.Argument(help="Message to answer. [default: a chat]", metavar="PROMPT", show_default=False),
    ] = None,
    system: SystemFlag = None,
    stats: StatsFlag = False,
    max_tokens: TokensFlag = None,
    temperature: TemperatureFlag = None,
    experts_per_token: ExpertsFlag = None,
    seed: SeedFlag = None,
) -> None:
    """Chat with MODEL, or with the bundled demo model (smoe-demo), in one command; with PROMPT, print one answer.

    It starts a server on a free port of this machine, which ends with the chat. If the server that the settings
    describe serves this model already, it is used instead. Environment variables have the same effect as for serve.

    \b
    smoe run smoe-demo "Count from 3 to 7."
    """
    from server.cli.client.api_client import ApiError, check_finite

    fields = without_none(
        max_tokens=max_tokens, temperature=temperature, experts_per_token=experts_per_token, seed=seed
    )
    try:
        check_finite(fields)  # before a model loads
        with serving(given_settings(context)) as (url, at):
            client = client_of(url, None)
            if prompt is None:
                code = chat_with(client, None, fields, system, with_stats=stats, at=at)
            else:
                code = _answer(client, fields, system, prompt, with_stats=stats)
    except ApiError as error:
        code = report_error(error)
    raise typer.Exit(code)


def _answer(client: Any, fields: dict[str, Any], system: str | None, prompt: str, *, with_stats: bool) -> int:
    """Print one answer and return the exit code."""
    from server.cli.chat.session import ChatSession, served_model

    session = ChatSession(client, served_model(client), fields, system, write_answer)
    session.send(prompt, with_stats=with_stats)
    return EXIT_CODE if session.has_failed else 0


@contextlib.contextmanager
def serving(settings: Mapping[str, Any]) -> Iterator[tuple[str | None, str]]:
    """Yield the URL of a server that is ready, None for that of the settings, and words about where it is.

    Raises ApiError.
    """
    from server.cli.colours import colours_of
    from server.cli.run.own_server import own_server, serve_arguments
    from server.cli.run.status_line import StatusLine
    from server.settings.sources import state_dir

    if _is_served(settings):
        yield None, " on the server that runs here"
        return
    for signum in ENDING_SIGNALS:
        if signal.getsignal(signum) is not signal.SIG_IGN:  # as SIGHUP is under nohup
            signal.signal(signum, _exit)
    line = StatusLine(sys.stderr, is_on=colours_of(sys.stderr).is_on)
    with own_server(serve_arguments(settings), state_dir() / LOG_NAME) as server:
        try:
            server.wait_ready(line.show)
        finally:
            line.clear()
        yield server.url, f" at {server.url}, for a browser too, until you leave"


def _is_served(settings: Mapping[str, Any]) -> bool:
    """Return whether the server that the settings describe is ready and serves the model as asked.

    A server with other flags than those of this command line may be running, so any flag means a server of one's own.
    """
    from server.cli.client.api_client import ApiError
    from server.model_files.location import model_id

    if settings.keys() - {"model"}:
        return False
    try:
        [model, *_] = client_of(None, None).get("/v1/models")["data"]
        is_ready = model["max_model_len"] is not None
        return is_ready and ("model" not in settings or model["id"] == model_id(settings["model"]))
    except (ApiError, LookupError, TypeError, ValueError):
        return False


def _exit(signum: int, _frame: object) -> None:
    sys.exit(128 + signum)  # ends the server on the way
