"""`smoe top`, from its flags to its exit code."""

import shutil
import sys
import time
from typing import TYPE_CHECKING, Annotated

import typer

from server.cli.client_commands import KeyFlag, UrlFlag, client_of
from server.cli.errors import report_error
from server.cli.help_text import WordsCommand

if TYPE_CHECKING:
    from server.cli.client.api_client import ApiClient
    from server.cli.top.screen import Snapshot

INTERVAL_S = 2
HOME, ERASE_LINE, ERASE_BELOW = "\x1b[H", "\x1b[K", "\x1b[J"
HIDE_CURSOR, SHOW_CURSOR = "\x1b[?25l", "\x1b[?25h"
OTHER_SCREEN, FIRST_SCREEN = "\x1b[?1049h", "\x1b[?1049l"


def add_to(app: typer.Typer) -> None:
    """Register the command with `app`."""
    app.command("top", cls=WordsCommand, short_help="Watch a running server.")(top_command)


def top_command(
    url: UrlFlag = None,
    api_key: KeyFlag = None,
    once: Annotated[bool, typer.Option("--once", help="Print one reading and exit, as into a file or a pipe.")] = False,
) -> None:
    """Watch a running server: requests, tokens per second, KV cache, step times and experts.

    \b
    smoe top --url http://127.0.0.1:8000
    """
    from server.cli.client.api_client import ApiError
    from server.settings.sources import is_plain_terminal

    try:
        client = client_of(url, api_key)
        first = _read(client)
    except ApiError as error:
        raise typer.Exit(report_error(error)) from None
    if once or not sys.stdout.isatty() or is_plain_terminal():
        typer.echo("\n".join(_lines(first, is_redrawn=False)), color=True)
        return
    _watch(client, first)


def _watch(client: "ApiClient", snapshot: "Snapshot") -> None:
    """Redraw until Ctrl-C. While the server cannot be reached, the last reading stays, with the reason below."""
    from server.cli.client.api_client import ApiError

    reason = ""
    sys.stdout.write(OTHER_SCREEN + HIDE_CURSOR)
    try:
        while True:
            _draw([*_lines(snapshot, is_redrawn=True), *([reason] if reason else [])])
            time.sleep(INTERVAL_S)
            try:
                snapshot, reason = _read(client), ""
            except ApiError as error:
                reason = str(error)
    except KeyboardInterrupt:
        pass
    finally:
        sys.stdout.write(SHOW_CURSOR + FIRST_SCREEN)
        sys.stdout.flush()


def _draw(lines: list[str]) -> None:
    sys.stdout.write(HOME + "".join(f"{line}{ERASE_LINE}\r\n" for line in lines[:-1]) + lines[-1] + ERASE_BELOW)
    sys.stdout.flush()


def _lines(snapshot: "Snapshot", *, is_redrawn: bool) -> list[str]:
    from server.cli.colours import colours_of
    from server.cli.top.screen import screen_lines

    size = shutil.get_terminal_size()
    height = size.lines - 1 if sys.stdout.isatty() else sys.maxsize
    return screen_lines(snapshot, colours_of(sys.stdout), size.columns, height, is_redrawn=is_redrawn)


def _read(client: "ApiClient") -> "Snapshot":
    """Ask the server for everything that is shown. Raises ApiError if it does not answer."""
    from server.cli.chat.session import served_model
    from server.cli.client.api_client import ApiError
    from server.cli.top.screen import Snapshot

    model, load = served_model(client), client.get(f"/load/recent?interval={INTERVAL_S}")
    try:
        client.get("/health")
        is_ready = True
    except ApiError:
        is_ready = False
    try:
        experts = client.get("/experts?window=60")
    except ApiError:
        experts = None
    return Snapshot(model, client.url, is_ready, load, experts)
