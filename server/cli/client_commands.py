"""`smoe chat`, `smoe complete` and `smoe doctor`. Each imports what it needs when it runs."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from server.cli.colours import colours_of
from server.cli.errors import EXIT_CODE, INTERRUPTED, report_error
from server.cli.help_text import WordsCommand
from server.cli.settings_command import given_settings, settings_command
from server.cli.terminal_text import write_note, write_text

if TYPE_CHECKING:
    from server.cli.api_client import ApiClient

UrlFlag = Annotated[
    str | None, typer.Option("--url", help="URL of the server. [default: from SMOE_HOST and SMOE_PORT]")
]
KeyFlag = Annotated[
    str | None,
    typer.Option("--api-key", help="Key to send. [default: the first of SMOE_API_KEY and SMOE_API_KEY_FILE]"),
]
SystemFlag = Annotated[str | None, typer.Option(help="System message of the conversation.", metavar="TEXT")]
StatsFlag = Annotated[bool, typer.Option("--stats", help="Print the number of tokens and times after each answer.")]
TokensFlag = Annotated[
    int | None, typer.Option("--max-tokens", min=1, help="Maximum number of tokens to generate.", metavar="N")
]
TemperatureFlag = Annotated[
    float | None, typer.Option("--temperature", min=0, help="Sampling temperature; 0 is greedy.", metavar="T")
]
ExpertsFlag = Annotated[
    int | None,
    typer.Option(
        "--experts-per-token", min=1, help="Experts per token; more are slower. [default: the server's]", metavar="K"
    ),
]
SeedFlag = Annotated[int | None, typer.Option("--seed", help="Seed; the same seed gives the same text.", metavar="N")]
COMPLETION_TOKENS = 256
USAGE_IN_EVERY_CHUNK = {"include_usage": True, "continuous_usage_stats": True}


def add_to(app: typer.Typer) -> None:
    """Register the commands with `app`."""
    app.command("chat", cls=WordsCommand)(chat_command)
    app.command("complete", cls=WordsCommand)(complete_command)
    app.command("run-batch", cls=WordsCommand)(run_batch_command)
    app.command("doctor", cls=settings_command("model", "rope_theta"))(doctor_command)


def chat_command(
    url: UrlFlag = None,
    api_key: KeyFlag = None,
    system: SystemFlag = None,
    stats: StatsFlag = False,
    max_tokens: TokensFlag = None,
    temperature: TemperatureFlag = None,
    experts_per_token: ExpertsFlag = None,
    seed: SeedFlag = None,
) -> None:
    """Chat with a running server. Inside, /help lists the commands. From a pipe, each line is a message.

    \b
    smoe chat --system "Answer in one sentence." --temperature 0.7
    """
    from server.cli.api_client import ApiError, NoServerError

    fields = without_none(
        max_tokens=max_tokens, temperature=temperature, experts_per_token=experts_per_token, seed=seed
    )
    try:
        client = client_of(url, api_key)
        raise typer.Exit(chat_with(client, fields, system, with_stats=stats))
    except NoServerError as error:
        raise typer.Exit(report_error(NoServerError(f"{error}, or do both with `smoe run`"))) from None
    except ApiError as error:
        raise typer.Exit(report_error(error)) from None


def chat_with(
    client: "ApiClient", fields: dict[str, Any], system: str | None, *, with_stats: bool, at: str = ""
) -> int:
    """Chat on a terminal, or answer the lines of a pipe; return the exit code. `at`: added to the first line.

    Raises ApiError if the server is not there.
    """
    from server.cli.chat import ChatSession, answer_lines, converse, served_model
    from server.settings.sources import is_plain_terminal

    model = served_model(client)
    session = ChatSession(client, model, fields, system, write_answer, _note)
    if not sys.stdin.isatty():
        return 0 if answer_lines(session, sys.stdin, with_stats=with_stats) else EXIT_CODE
    _note(f"{model}{at}. /help lists the commands.\n")
    converse(session, _history_file(), colours_of(sys.stdout), with_stats=with_stats, is_plain=is_plain_terminal())
    return 0


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
    stats: StatsFlag = False,
    max_tokens: TokensFlag = None,
    temperature: TemperatureFlag = None,
    experts_per_token: ExpertsFlag = None,
    seed: SeedFlag = None,
) -> None:
    """Complete PROMPT with a running server; the text is written to standard output while it is generated.

    A terminal shows control characters of the text as \\x1b; a file or a pipe gets the text unchanged.

    \b
    smoe complete "It was not in her power to" --max-tokens 80
    """
    from server.cli.api_client import ApiError
    from server.cli.chat import served_model
    from server.cli.streamed_answer import read_answer

    if prompt is None and sys.stdin.isatty():
        raise typer.Exit(report_error(ValueError('give a PROMPT, such as smoe complete "It was", or pipe a text in')))
    fields = without_none(
        max_tokens=max_tokens or COMPLETION_TOKENS,
        temperature=temperature,
        experts_per_token=experts_per_token,
        seed=seed,
        stream_options=USAGE_IN_EVERY_CHUNK,
        prompt=sys.stdin.read() if prompt in (None, "-") else prompt,
    )
    try:
        client = client_of(url, api_key)
        fields["model"] = served_model(client)
        answer = read_answer(client.stream("/v1/completions", fields), write_answer)
    except ApiError as error:
        raise typer.Exit(report_error(error)) from None
    write_answer("\n")
    if stats:
        write_note(f"{answer.figures}\n", sys.stderr)
    raise typer.Exit(0 if answer.finish_reason else INTERRUPTED)


def run_batch_command(
    source: Annotated[
        Path, typer.Argument(help="File with a request per line, in OpenAI's batch format.", metavar="IN.jsonl")
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="File for the answers; those in it are kept.", metavar="OUT.jsonl")
    ],
    url: UrlFlag = None,
    api_key: KeyFlag = None,
    concurrency: Annotated[int, typer.Option(min=1, max=4096, help="Requests to send at a time.", metavar="N")] = 256,
) -> None:
    """Send a file of requests to a running server and write the answers to another, in the order of their ends.

    Run it again after an interruption: requests with an answer in OUT.jsonl are not sent again. Exits with 1 if a
    request was answered with an error.

    \b
    smoe run-batch questions.jsonl -o answers.jsonl
    """
    from server.batch.lines import BatchError
    from server.cli import run_batch
    from server.cli.api_client import ApiError

    try:
        client = client_of(url, api_key)
        client.get("/v1/models")
        code = run_batch.run(source, output, client.url, client.api_key, concurrency)
    except (ApiError, BatchError) as error:
        raise typer.Exit(report_error(error)) from None
    except KeyboardInterrupt:
        raise typer.Exit(INTERRUPTED) from None
    raise typer.Exit(code)


def doctor_command(
    context: typer.Context, as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False
) -> None:
    """Check everything that `smoe serve MODEL` needs on this machine, and suggest remedies.

    Environment variables (SMOE_PORT, SMOE_DEVICE, ...) have the same effect as for serve. Exits with 1 if the server
    cannot start.

    \b
    smoe doctor /models/Mixtral-8x7B-Instruct-v0.1
    """
    from server.cli import doctor
    from server.cli.settings_of_command import load_settings
    from server.settings.sources import SettingsError

    try:
        settings = load_settings(given_settings(context))
    except SettingsError as error:
        raise typer.Exit(report_error(error)) from None
    checks = doctor.run_checks(settings)
    colours = colours_of(sys.stdout)
    typer.echo(doctor.as_json(checks) if as_json else doctor.as_table(checks, colours), color=colours.is_on)
    raise typer.Exit(1 if any(check.verdict == "fail" for check in checks) else 0)


def without_none(**fields: Any) -> dict[str, Any]:
    """Return the fields that have a value."""
    return {name: value for name, value in fields.items() if value is not None}


def client_of(url: str | None, api_key: str | None) -> "ApiClient":
    """Return a client of the server at `url`, or of the one that this machine's settings describe. Raises ApiError."""
    from server.cli.api_client import ApiClient, ApiError
    from server.cli.settings_of_command import load_settings
    from server.settings.sources import SettingsError

    try:
        settings = load_settings({})
    except SettingsError as error:
        raise ApiError(str(error)) from None
    key = api_key or next(iter(settings.api_keys), None)
    scheme = "http" if settings.ssl_certfile is None else "https"
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    return ApiClient(url or f"{scheme}://{host}:{settings.port}", key)


def _history_file() -> Path:
    from server.settings.sources import state_dir

    return state_dir() / "chat_history"


def write_answer(text: str) -> None:
    """Write a piece of an answer to standard output."""
    write_text(text, sys.stdout)


def _note(text: str) -> None:
    write_note(text, sys.stdout)
