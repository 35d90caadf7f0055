"""`smoe bench`'s commands. What each needs is imported when it runs."""

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

app = typer.Typer(name="bench", help="Measure a server, the kernels, or whole steps.", no_args_is_help=True)

JsonFlag = Annotated[bool, typer.Option("--json", help="One JSON object on standard output.")]
PlotFlag = Annotated[
    Path | None, typer.Option("--plot", help="Draw tokens/s against clients into this file.", metavar="FILE.png")
]


@app.command("serve")
def serve_command(
    url: Annotated[str, typer.Argument(help="The server, with or without /v1.")] = "http://127.0.0.1:8000",
    model: Annotated[str | None, typer.Option(help="Model id. [the first that /v1/models names]")] = None,
    api: Annotated[str, typer.Option(help="completions or chat.")] = "completions",
    api_key: Annotated[str | None, typer.Option(help="Sent as a bearer token.")] = None,
    clients: Annotated[str, typer.Option(help="Closed loop: how many at once; several counts as 1,4,16.")] = "16",
    rate: Annotated[float | None, typer.Option(help="Open loop instead: Poisson arrivals per second.")] = None,
    trace: Annotated[
        Path | None, typer.Option(help='Open loop: JSONL of {"arrival_s", "prompt_tokens", "output_tokens"}.')
    ] = None,
    requests: Annotated[int, typer.Option(min=1, help="Requests per run; at least 3 per client.")] = 48,
    prompt: Annotated[str, typer.Option(help="tokens (random ids) or text (random words).")] = "tokens",
    prompt_tokens: Annotated[str, typer.Option(help="Length of prompts, as 64 or 16,256.")] = "16,256",
    output_tokens: Annotated[str, typer.Option(help="Tokens to generate, as 64 or 16,256.")] = "64",
    vocab_size: Annotated[int, typer.Option(min=301, help="Random ids are below it.")] = 2000,
    no_ignore_eos: Annotated[
        bool, typer.Option("--no-ignore-eos", help="Answers may end early; for servers that know no ignore_eos.")
    ] = False,
    warmup: Annotated[int, typer.Option(min=0, help="Requests before those that are measured.")] = 2,
    seed: Annotated[int, typer.Option(help="Of lengths, prompts and arrivals.")] = 0,
    label: Annotated[str | None, typer.Option(help="What charts call this server. [its URL]")] = None,
    stub: Annotated[
        bool, typer.Option("--stub", help="Measure this installation's front end, engine stubbed.")
    ] = False,
    stub_streams: Annotated[int, typer.Option(min=1, help="With --stub: streams at once.")] = 256,
    stub_steps: Annotated[
        float, typer.Option(min=0, help="With --stub: steps per second, each a token for every stream. 0: no limit.")
    ] = 100.0,
    as_json: JsonFlag = False,
    plot: PlotFlag = None,
) -> None:
    """Put load on an OpenAI-style server and report time to first token, gaps and throughput.

    Exits with 1 where a request failed.
    """
    if stub:
        raise typer.Exit(_stub(stub_streams, stub_steps, as_json))
    given = {name: value for name, value in locals().items() if not name.startswith("stub")}
    raise typer.Exit(_serve(given))


def _stub(num_streams: int, steps_per_s: float, as_json: bool) -> int:
    import uvloop

    from server.bench import stub

    try:
        figures = uvloop.run(stub.measure(num_streams, stub.TOKENS_PER_STREAM, steps_per_s))
    except stub.StubError as error:
        return _refused(error)
    typer.echo(json.dumps(figures) if as_json else stub.shown(figures))
    return 1 if figures["errors"] else 0


def _serve(given: dict[str, Any]) -> int:
    import uvloop

    from server.bench import chart, serve
    from server.bench.http_client import HttpError
    from server.bench.report import table
    from server.bench.work import WorkError

    as_json, plot = given.pop("as_json"), given.pop("plot")
    try:
        if plot is not None:
            chart.check_available()
        result = uvloop.run(serve.measure(serve.options_of(given), sys.stderr))
        if plot is not None:
            chart.draw([result], plot)
    except (WorkError, HttpError, OSError, chart.ChartError) as error:
        return _refused(error)
    typer.echo(json.dumps(result) if as_json else table(result["runs"]))
    return 1 if any(run["errors"] for run in result["runs"]) else 0


@app.command("chart")
def chart_command(
    results: Annotated[list[Path], typer.Argument(help="What `smoe bench serve --json` printed, one file per server.")],
    plot: Annotated[Path, typer.Option("--plot", help="The picture to write.", metavar="FILE.png")],
) -> None:
    """Draw tokens/s against clients, several servers in one chart."""
    from server.bench import chart

    try:
        chart.draw([chart.read(path) for path in results], plot)
    except chart.ChartError as error:
        raise typer.Exit(_refused(error)) from None


def _refused(error: Exception) -> int:
    typer.echo(f"smoe: {error}", err=True)
    return 2
