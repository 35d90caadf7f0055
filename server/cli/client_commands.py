"""`smoe chat`, `smoe complete` and `smoe doctor`. What each needs is imported when it runs."""

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

UrlFlag = Annotated[str | None, typer.Option("--url", help="The server. [what `smoe serve` would listen on here]")]
KeyFlag = Annotated[str | None, typer.Option("--api-key", help="Key to send. [the first of SMOE_API_KEY]")]
StatsFlag = Annotated[bool, typer.Option("--stats", help="Tokens and times after each answer.")]
TokensFlag = Annotated[int | None, typer.Option("--max-tokens", min=1, help="Longest answer.", metavar="N")]
TemperatureFlag = Annotated[float | None, typer.Option("--temperature", min=0, help="0 is greedy.", metavar="T")]
ExpertsFlag = Annotated[
    int | None, typer.Option("--experts-per-token", min=1, help="More is slower. [the model's own]", metavar="K")
]
SeedFlag = Annotated[int | None, typer.Option("--seed", help="The same seed gives the same text.", metavar="N")]
COMPLETION_TOKENS = 256


def add_to(app: typer.Typer) -> None:
    """The commands, as `app`'s."""
    app.command("chat")(chat_command)
    app.command("complete")(complete_command)
    app.command("doctor")(doctor_command)


def chat_command(
    url: UrlFlag = None,
    api_key: KeyFlag = None,
    system: Annotated[str | None, typer.Option(help="System message, before all others.", metavar="TEXT")] = None,
    stats: StatsFlag = False,
    max_tokens: TokensFlag = None,
    temperature: TemperatureFlag = None,
    experts_per_token: ExpertsFlag = None,
    seed: SeedFlag = None,
) -> None:
    """Talk to a running server. /help lists what can be asked beside messages."""
    from server.cli.api_client import RemoteError
    from server.cli.chat import ChatSession, converse, served_model

    fields = _given(max_tokens=max_tokens, temperature=temperature, experts_per_token=experts_per_token, seed=seed)
    try:
        remote = _remote(url, api_key)
        model = served_model(remote)
    except RemoteError as error:
        raise _refused(error) from None
    if sys.stdin.isatty():
        typer.echo(f"{model}. /help for help.")
    converse(ChatSession(remote, model, fields, system, _write), _history_file(), with_stats=stats)


def complete_command(
    prompt: Annotated[str, typer.Argument(help="The text's beginning; - reads it from standard input.")],
    url: UrlFlag = None,
    api_key: KeyFlag = None,
    stats: StatsFlag = False,
    max_tokens: TokensFlag = None,
    temperature: TemperatureFlag = None,
    experts_per_token: ExpertsFlag = None,
    seed: SeedFlag = None,
) -> None:
    """Go on with PROMPT; what a running server writes goes to standard output as it comes."""
    from server.cli.api_client import RemoteError
    from server.cli.chat import served_model
    from server.cli.streamed_answer import read_answer

    fields = _given(
        max_tokens=max_tokens or COMPLETION_TOKENS,
        temperature=temperature,
        experts_per_token=experts_per_token,
        seed=seed,
        stream_options={"include_usage": True, "continuous_usage_stats": True},
        prompt=sys.stdin.read() if prompt == "-" else prompt,
    )
    try:
        remote = _remote(url, api_key)
        fields["model"] = served_model(remote)
        answer = read_answer(remote.stream("/v1/completions", fields), _write)
    except RemoteError as error:
        raise _refused(error) from None
    _write("\n")
    if stats:
        typer.echo(answer.figures, err=True)
    raise typer.Exit(0 if answer.finish_reason else 130)


def doctor_command(
    model: Annotated[str | None, typer.Argument(help="Directory, or org/name in the local Hugging Face cache.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """Say what `smoe serve MODEL` would find here, and what to do about what is wrong.

    SMOE_* variables count as they do for serve. Exits with 1 where something keeps the server from starting.
    """
    from server.cli import doctor
    from server.settings import SettingsError, load_settings

    try:
        settings = load_settings(_given(model=model))
    except SettingsError as error:
        raise _refused(error) from None
    findings = doctor.run_checks(settings)
    typer.echo(doctor.as_json(findings) if as_json else doctor.as_table(findings))
    raise typer.Exit(1 if any(finding.verdict == "fail" for finding in findings) else 0)


def _given(**fields: Any) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not None}


def _remote(url: str | None, api_key: str | None) -> Any:
    """The server that was named, or the one that this machine's settings describe. Raises RemoteError."""
    from server.cli.api_client import ApiClient, RemoteError
    from server.settings import SettingsError, load_settings

    try:
        settings = load_settings({})
    except SettingsError as error:
        raise RemoteError(str(error)) from None
    key = api_key or next(iter(settings.api_key), None)
    scheme = "http" if settings.ssl_certfile is None else "https"
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    return ApiClient(url or f"{scheme}://{host}:{settings.port}", key)


def _history_file() -> Path:
    from server.settings import state_dir

    return state_dir() / "chat_history"


def _write(text: str) -> None:
    """At once: an answer is read while it comes."""
    sys.stdout.write(text)
    sys.stdout.flush()


def _refused(error: Exception) -> typer.Exit:
    typer.echo(f"smoe: {error}", err=True)
    return typer.Exit(2)
