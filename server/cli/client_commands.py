"""`smoe chat`, `smoe run-batch`, `smoe doctor`, `smoe health`, and flags of all clients. Each imports what it needs
when it runs."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from server.cli.colours import colours_of
from server.cli.errors import EXIT_CODE, INTERRUPTED, report_error
from server.cli.help_text import WordsCommand
from server.cli.settings.options import given_settings, settings_command
from server.cli.terminal_text import write_note, write_text

if TYPE_CHECKING:
    from server.cli.client.api_client import ApiClient
    from server.settings.settings import Settings

UrlFlag = Annotated[
    str | None, typer.Option("--url", help="URL of the server. [default: from SMOE_HOST and SMOE_PORT, or SMOE_UDS]")
]
KeyFlag = Annotated[
    str | None,
    typer.Option("--api-key", help="Key to send. [default: the first of SMOE_API_KEY and SMOE_API_KEY_FILE]"),
]
ModelFlag = Annotated[
    str | None,
    typer.Option("--model", help="Model or LoRA adapter. [default: the server's model]", metavar="NAME"),
]
SystemFlag = Annotated[str | None, typer.Option(help="System message of the conversation.", metavar="TEXT")]
StatsFlag = Annotated[bool, typer.Option("--stats", help="Print the number of tokens and times after each answer.")]
TokensFlag = Annotated[
    int | None, typer.Option("--max-tokens", "-n", min=1, help="Maximum number of tokens to generate.", metavar="N")
]
TemperatureFlag = Annotated[
    float | None, typer.Option("--temperature", "-t", min=0, help="Sampling temperature; 0 is greedy.", metavar="T")
]
ExpertsFlag = Annotated[
    int | None,
    typer.Option(
        "--experts-per-token",
        "-k",
        min=1,
        help="Experts per token; more are slower. [default: the server's]",
        metavar="K",
    ),
]
SeedFlag = Annotated[int | None, typer.Option("--seed", help="Seed; the same seed gives the same text.", metavar="N")]


def add_to(app: typer.Typer) -> None:
    """Register the commands with `app`."""
    app.command("chat", cls=WordsCommand)(chat_command)
    app.command("run-batch", cls=WordsCommand, short_help="Send a file of requests to a running server.")(
        run_batch_command
    )
    app.command("doctor", cls=settings_command(), short_help="Check what would prevent a start of the server.")(
        doctor_command
    )
    settings = settings_command("host", "port", "uds", "ssl_certfile", "ssl_keyfile")
    app.command("health", cls=settings, short_help="Ask the server here whether it is alive.")(health_command)


def chat_command(
    url: UrlFlag = None,
    api_key: KeyFlag = None,
    model: ModelFlag = None,
    system: SystemFlag = None,
    stats: StatsFlag = False,
    max_tokens: TokensFlag = None,
    temperature: TemperatureFlag = None,
    experts_per_token: ExpertsFlag = None,
    seed: SeedFlag = None,
    question: Annotated[
        str | None, typer.Option("--question", "-q", help="Answer this message and leave.", metavar="TEXT")
    ] = None,
) -> None:
    """Chat with a running server. Inside, /help lists the commands. From a pipe, each line is a message.

    \b
    smoe chat -q "Count from 3 to 7."
    smoe chat --system "Answer in one sentence." --temperature 0.7
    """
    from server.cli.client.api_client import ApiError, NoServerError

    fields = without_none(
        max_tokens=max_tokens, temperature=temperature, experts_per_token=experts_per_token, seed=seed
    )
    try:
        client = client_of(url, api_key)
        if question is not None:
            raise typer.Exit(answer_once(client, model, fields, system, question, with_stats=stats))
        raise typer.Exit(chat_with(client, model, fields, system, with_stats=stats))
    except NoServerError as error:
        raise typer.Exit(report_error(NoServerError(f"{error}, or do both with `smoe run`"))) from None
    except ApiError as error:
        raise typer.Exit(report_error(error)) from None


def chat_with(
    client: "ApiClient",
    name: str | None,
    fields: dict[str, Any],
    system: str | None,
    *,
    with_stats: bool,
    at: str = "",
) -> int:
    """Chat on a terminal, or answer the lines of a pipe; return the exit code. `at`: added to the first line.

    `name`: of the model; None: the server's first. Raises ApiError if server or model are not there.
    """
    from server.cli.chat.reader import answer_lines, converse
    from server.cli.chat.session import ChatSession, served_model
    from server.settings.sources import is_plain_terminal

    model = served_model(client, name)
    colours = colours_of(sys.stdout)
    session = ChatSession(client, model, fields, system, write_answer, _note, colours)
    if not sys.stdin.isatty():
        return 0 if answer_lines(session, sys.stdin, with_stats=with_stats) else EXIT_CODE
    _note(f"{model}{at}. /help lists the commands.\n")
    converse(session, _history_file(), colours, with_stats=with_stats, is_plain=is_plain_terminal())
    return 0


def answer_once(
    client: "ApiClient",
    name: str | None,
    fields: dict[str, Any],
    system: str | None,
    message: str,
    *,
    with_stats: bool,
) -> int:
    """Print one answer and return the exit code; figures go to standard error. Raises ApiError."""
    from server.cli.chat.session import ChatSession, served_model

    session = ChatSession(client, served_model(client, name), fields, system, write_answer, _note_beside)
    session.send(message, with_stats=with_stats)
    return EXIT_CODE if session.has_failed else 0


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
    from server.cli.client.api_client import ApiError

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
    context: typer.Context,
    config: Annotated[Path | None, typer.Option(help="YAML file with any of these settings.", metavar="FILE")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Check everything that `smoe serve MODEL` needs on this machine, and suggest remedies.

    Takes the flags of `smoe serve`; environment variables (SMOE_PORT, SMOE_DEVICE, ...) have the same effect too. Exits
    with 1 if the server cannot start.

    \b
    smoe doctor /models/Mixtral-8x7B-Instruct-v0.1 --quantization int8
    """
    from server.cli import doctor
    from server.cli.settings.loading import load_settings
    from server.settings.sources import SettingsError

    try:
        settings = load_settings(given_settings(context), config)
    except SettingsError as error:
        raise typer.Exit(report_error(error)) from None
    checks = doctor.run_checks(settings)
    colours = colours_of(sys.stdout)
    typer.echo(doctor.as_json(checks) if as_json else doctor.as_table(checks, colours), color=colours.is_on)
    raise typer.Exit(1 if any(check.verdict == "fail" for check in checks) else 0)


def health_command(
    context: typer.Context,
    ready: Annotated[
        bool, typer.Option("--ready", help="Also fail while the server loads, drains or restarts its engine.")
    ] = False,
) -> None:
    """Ask the server on this machine whether it is alive, as the health check of a container does.

    Environment variables (SMOE_PORT, SMOE_SSL_CERTFILE, SMOE_CONFIG, ...) have the same effect as for serve. Exits
    with 1, and a line, unless the server answers; also for a wrong setting.

    \b
    smoe health --port 9000
    """
    from server.cli import health
    from server.cli.settings.loading import load_settings
    from server.settings.sources import SettingsError

    try:
        settings = load_settings(given_settings(context))
    except SettingsError as error:
        report_error(error)
        raise typer.Exit(1) from None  # Docker reserves 2
    if reason := health.fault(settings, health.READY if ready else health.ALIVE):
        report_error(ValueError(reason))
        raise typer.Exit(1)


def without_none(**fields: Any) -> dict[str, Any]:
    """Return the fields that have a value."""
    return {name: value for name, value in fields.items() if value is not None}


def client_of(url: str | None, api_key: str | None) -> "ApiClient":
    """Return a client of the server at `url`, or of the one that this machine's settings describe. Raises ApiError."""
    from server.cli.client.api_client import ApiClient, ApiError
    from server.cli.settings.loading import load_settings
    from server.settings.sources import SettingsError

    try:
        settings = load_settings({})
    except SettingsError as error:
        raise ApiError(str(error)) from None
    key = api_key or next(iter(settings.api_keys), None)
    return ApiClient(url or _url_of(settings), key)


def _url_of(settings: "Settings") -> str:
    if settings.uds is not None:
        return f"unix:{settings.uds}"
    scheme = "http" if settings.ssl_certfile is None else "https"
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    return f"{scheme}://{host}:{settings.port}"


def _history_file() -> Path:
    from server.settings.sources import state_dir

    return state_dir() / "chat_history"


def write_answer(text: str) -> None:
    """Write a piece of an answer to standard output."""
    write_text(text, sys.stdout)


def _note(text: str) -> None:
    write_note(text, sys.stdout)


def _note_beside(text: str) -> None:
    write_note(text, sys.stderr)
