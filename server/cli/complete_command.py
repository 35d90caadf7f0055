"""`smoe complete`: continue a text with a running server."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from server.cli.client_commands import (
    ExpertsFlag,
    KeyFlag,
    ModelFlag,
    SeedFlag,
    StatsFlag,
    TemperatureFlag,
    TokensFlag,
    UrlFlag,
    client_of,
    without_none,
    write_answer,
)
from server.cli.errors import INTERRUPTED, report_error
from server.cli.help_text import WordsCommand
from server.cli.terminal_text import write_note

if TYPE_CHECKING:
    from server.cli.client.api_client import ApiClient

COMPLETION_TOKENS = 256
USAGE_IN_EVERY_CHUNK = {"include_usage": True, "continuous_usage_stats": True}


def add_to(app: typer.Typer) -> None:
    """Register the command with `app`."""
    app.command("complete", cls=WordsCommand, short_help="Continue a text with a running server.")(complete_command)


def complete_command(
    prompt: Annotated[
        str | None,
        typer.Argument(
            help="Beginning of the text. [default: standard input, if it is a file or a pipe; - reads it always]",
            metavar="PROMPT",
            show_default=False,
        ),
    ] = None,
    url: UrlFlag = None,
    api_key: KeyFlag = None,
    model: ModelFlag = None,
    stats: StatsFlag = False,
    max_tokens: TokensFlag = None,
    temperature: TemperatureFlag = None,
    experts_per_token: ExpertsFlag = None,
    seed: SeedFlag = None,
    stop: Annotated[
        list[str] | None, typer.Option(help="End the text before this one. May be repeated.", metavar="TEXT")
    ] = None,
    schema: Annotated[
        Path | None, typer.Option(help="Write JSON that follows the JSON schema in this file.", metavar="FILE")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the server's whole reply as one JSON object.")] = False,
) -> None:
    """Complete PROMPT with a running server; the text is written to standard output while it is generated.

    A terminal shows control characters of the text as \\x1b; a file or a pipe gets the text unchanged.

    \b
    smoe complete "It was not in her power to" --max-tokens 80
    smoe complete "A person as JSON: " --schema person.json --json
    """
    from server.cli.chat.session import served_model
    from server.cli.client.api_client import ApiError

    if prompt is None and sys.stdin.isatty():
        raise typer.Exit(report_error(ValueError('give a PROMPT, such as smoe complete "It was", or pipe a text in')))
    try:
        fields = without_none(
            max_tokens=max_tokens or COMPLETION_TOKENS,
            temperature=temperature,
            experts_per_token=experts_per_token,
            seed=seed,
            stop=stop or None,
            guided_json=None if schema is None else _schema_of(schema),
            prompt=sys.stdin.read() if prompt in (None, "-") else prompt,
        )
        client = client_of(url, api_key)
        fields["model"] = served_model(client, model)
        raise typer.Exit(_print_reply(client, fields) if as_json else _stream(client, fields, with_stats=stats))
    except (ApiError, ValueError) as error:
        raise typer.Exit(report_error(error)) from None


def _schema_of(path: Path) -> dict[str, Any]:
    """Read a JSON schema. Raises ValueError (one line)."""
    try:
        schema = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}") from None
    except ValueError:
        raise ValueError(f"{path} is not JSON") from None
    if not isinstance(schema, dict):
        raise ValueError(f'{path}: a JSON schema is an object, such as {{"type": "object"}}')
    return schema


def _print_reply(client: "ApiClient", fields: dict[str, Any]) -> int:
    """Print the reply of the server; return the exit code. Raises ApiError."""
    reply = client.post("/v1/completions", fields)
    typer.echo(json.dumps(reply, ensure_ascii=sys.stdout.isatty()))
    return 0


def _stream(client: "ApiClient", fields: dict[str, Any], *, with_stats: bool) -> int:
    """Write the text as it comes; return the exit code. Raises ApiError."""
    from server.cli.client.streamed_answer import read_answer

    asked = {**fields, "stream_options": USAGE_IN_EVERY_CHUNK}
    answer = read_answer(client.stream("/v1/completions", asked), write_answer)
    write_answer("\n")
    if with_stats:
        write_note(f"{answer.figures}\n", sys.stderr)
    return 0 if answer.finish_reason else INTERRUPTED
