"""`smoe bench`: all commands but `compare` and `steps`, which are beside. Each imports what it needs when it runs."""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from server.cli.bench.compare import compare_command
from server.cli.bench.load_flags import (
    ApiFlag,
    EndEarlyFlag,
    OutputTokensFlag,
    PromptFlag,
    PromptTokensFlag,
    RequestsFlag,
    VocabSizeFlag,
)
from server.cli.bench.steps import SETTINGS, steps_command
from server.cli.errors import INTERRUPTED, report_error
from server.cli.help_text import WordsCommand
from server.cli.settings.options import given_settings, settings_command

app = typer.Typer(name="bench", help="Measure a server, the kernels, or whole steps.", no_args_is_help=True)

app.command("compare", cls=WordsCommand)(compare_command)
app.command("steps", cls=settings_command(*SETTINGS))(steps_command)

JsonFlag = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
PlotFlag = Annotated[
    Path | None,
    typer.Option("--plot", help="Draw tokens/s against clients into this file. Needs matplotlib.", metavar="FILE.png"),
]
TraceFlag = Annotated[
    Path | None,
    typer.Option(
        help='Open loop instead: JSONL file with {"arrival_s", "prompt_tokens", "output_tokens"} per line, or the '
        "CSV file of Azure's LLM inference trace or of BurstGPT."
    ),
]
StubFlag = Annotated[
    bool,
    typer.Option("--stub", help="Measure only the front end of this installation, over an engine without a model."),
]
StubStepsFlag = Annotated[
    float,
    typer.Option(min=0, help="With --stub: steps per second; each gives every stream a token. 0 is unlimited."),
]
ENGINE_SETTINGS = ("dtype", "quantization", "kv_cache_dtype", "backend", "isa", "threads", "deterministic")
STEP_SETTINGS = ("sliding_window", "enforce_eager", "no_programmatic_launch", "async_scheduling")


@app.command("serve", cls=WordsCommand)
def serve_command(
    url: Annotated[
        str, typer.Argument(help="URL of the server, with or without /v1.", metavar="URL")
    ] = "http://127.0.0.1:8000",
    model: Annotated[str | None, typer.Option(help="Model id. [default: the first one in /v1/models]")] = None,
    api: ApiFlag = "completions",
    api_key: Annotated[str | None, typer.Option(help="Key to send as a bearer token.")] = None,
    clients: Annotated[
        str, typer.Option(help="Closed loop with this many clients; 1,4,16 measures one after the other.")
    ] = "16",
    rate: Annotated[
        float | None, typer.Option(help="Open loop instead: requests per second, with Poisson arrivals.")
    ] = None,
    trace: TraceFlag = None,
    requests: RequestsFlag = 48,
    prompt: PromptFlag = "tokens",
    prompt_tokens: PromptTokensFlag = "16,256",
    output_tokens: OutputTokensFlag = "64",
    vocab_size: VocabSizeFlag = 2000,
    no_ignore_eos: EndEarlyFlag = False,
    warmup: Annotated[int, typer.Option(min=0, help="Warm-up requests before the measured ones.")] = 2,
    seed: Annotated[int, typer.Option(help="Seed of lengths, prompts and arrivals.")] = 0,
    label: Annotated[str | None, typer.Option(help="Name of this server in charts. [default: its URL]")] = None,
    stub: StubFlag = False,
    stub_streams: Annotated[int, typer.Option(min=1, help="With --stub: number of simultaneous streams.")] = 256,
    stub_steps: StubStepsFlag = 100.0,
    as_json: JsonFlag = False,
    plot: PlotFlag = None,
) -> None:
    """Put load on an OpenAI-style server; report time to first token, gaps between tokens and throughput.

    Exits with 1 if a request failed. Ctrl-C prints the figures of the requests that have ended.

    \b
    smoe bench serve http://127.0.0.1:8000 --clients 1,4,16 --plot chart.png
    """
    if stub:
        raise typer.Exit(_stub(stub_streams, stub_steps, as_json))
    given = {name: value for name, value in locals().items() if not name.startswith("stub")}
    raise typer.Exit(_serve(given))


def _stub(num_streams: int, steps_per_s: float, as_json: bool) -> int:
    import uvloop

    from server.bench import frontend

    try:
        figures = uvloop.run(frontend.measure(num_streams, frontend.TOKENS_PER_STREAM, steps_per_s))
    except frontend.StubError as error:
        return report_error(error)
    typer.echo(json.dumps(figures) if as_json else frontend.as_text(figures))
    return 1 if figures["errors"] else 0


def _serve(given: dict[str, Any]) -> int:
    import uvloop

    from server.bench import chart, serve
    from server.bench.http_client import HttpError
    from server.bench.report import table
    from server.bench.workload import WorkloadError

    as_json, plot = given.pop("as_json"), given.pop("plot")
    try:
        if plot is not None:
            chart.check_can_draw(plot, is_open_loop=given["rate"] is not None or given["trace"] is not None)
        result = uvloop.run(serve.measure(serve.parse_options(given), sys.stderr))
    except (WorkloadError, HttpError, OSError, chart.ChartError) as error:
        return report_error(error)
    typer.echo(json.dumps(result) if as_json else table(result["runs"]))
    if result["interrupted"]:
        typer.echo("smoe: interrupted; the figures are of the requests that had ended", err=True)
        return INTERRUPTED
    try:
        if plot is not None:
            chart.draw([result], plot)
    except chart.ChartError as error:
        return report_error(error)
    return 1 if any(run["errors"] for run in result["runs"]) else 0


@app.command("chart", cls=WordsCommand)
def chart_command(
    results: Annotated[
        list[Path], typer.Argument(help="Files with the output of `smoe bench serve --json`, one per server.")
    ],
    plot: Annotated[Path, typer.Option("--plot", help="Picture to write.", metavar="FILE.png")],
) -> None:
    """Draw tokens/s against clients, several servers in one chart. Needs matplotlib.

    \b
    smoe bench chart one.json other.json --plot chart.png
    """
    from server.bench import chart

    try:
        chart.draw([chart.read(path) for path in results], plot)
    except chart.ChartError as error:
        raise typer.Exit(report_error(error)) from None


DeviceFlag = Annotated[str, typer.Option(help="cpu or cuda.")]
PresetFlag = Annotated[
    str | None,
    typer.Option(
        help="Shape of a model with random weights: bench-400m, mixtral-8x7b or tiny. "
        "[default: bench-400m on a CPU, mixtral-8x7b on a GPU]"
    ),
]
ContextsFlag = Annotated[str | None, typer.Option(help="Context lengths in tokens, as 256,4096.")]


@app.command("kernels", cls=settings_command(*ENGINE_SETTINGS))
def kernels_command(
    context: typer.Context,
    device: DeviceFlag = "cpu",
    preset: PresetFlag = None,
    rows: Annotated[str | None, typer.Option(help="Rows per call, as 1,16,64.")] = None,
    contexts: ContextsFlag = None,
    as_json: JsonFlag = False,
) -> None:
    """Time every kernel, as a share of the memory's and the arithmetic's limits, measured in the same run.

    \b
    smoe bench kernels --quantization int8 --rows 1,16
    """
    settings = {**given_settings(context), "device": device}
    raise typer.Exit(_offline("kernels", settings, as_json, preset, rows=rows, contexts=contexts))


@app.command("engine", cls=settings_command(*ENGINE_SETTINGS, *STEP_SETTINGS))
def engine_command(
    context: typer.Context,
    model: Annotated[
        str | None, typer.Argument(help="Directory of a checkpoint. [default: random weights]", metavar="MODEL")
    ] = None,
    device: DeviceFlag = "cpu",
    preset: PresetFlag = None,
    batches: Annotated[str | None, typer.Option(help="Batch sizes, as 1,16,64.")] = None,
    contexts: ContextsFlag = None,
    prefills: Annotated[str | None, typer.Option(help="Prompt lengths in tokens, as 128,512.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Time decode steps and prefills, as a share of the memory's and the arithmetic's limits, measured in the same run.

    \b
    smoe bench engine /models/Mixtral-8x7B-Instruct-v0.1 --batches 1,16
    """
    settings = {**given_settings(context), "device": device} | ({} if model is None else {"model": model})
    raise typer.Exit(
        _offline("engine", settings, as_json, preset, batches=batches, contexts=contexts, prefills=prefills)
    )


def _offline(
    what: Literal["kernels", "engine"],
    settings: Mapping[str, str | bool],
    as_json: bool,
    preset: str | None,
    **lists: str | None,
) -> int:
    """Measure in a separate process and print the figures. `lists`: texts such as "1,16" by flag; None: default."""
    from server.bench import offline

    try:
        counts = {name: offline.parse_counts(f"--{name}", text) for name, text in lists.items() if text is not None}
        task = offline.make_task(
            what,
            settings,
            preset,
            rows=counts.get("rows") or counts.get("batches"),
            contexts=counts.get("contexts"),
            prefills=counts.get("prefills"),
        )
        result = offline.measure(task)
    except offline.BenchError as error:
        return report_error(error)
    typer.echo(json.dumps(result) if as_json else offline.table(result))
    return 0
