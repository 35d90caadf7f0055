"""`smoe bench`'s commands. What each needs is imported when it runs."""

import json
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

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

    from server.bench import frontend

    try:
        figures = uvloop.run(frontend.measure(num_streams, frontend.TOKENS_PER_STREAM, steps_per_s))
    except frontend.StubError as error:
        return _refused(error)
    typer.echo(json.dumps(figures) if as_json else frontend.shown(figures))
    return 1 if figures["errors"] else 0


def _serve(given: dict[str, Any]) -> int:
    import uvloop

    from server.bench import chart, serve
    from server.bench.http_client import HttpError
    from server.bench.report import table
    from server.bench.workload import WorkError

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


DeviceFlag = Annotated[str, typer.Option(help="cpu or cuda.")]
PresetFlag = Annotated[
    str | None, typer.Option(help="Random weights of this shape: bench-400m, mixtral-8x7b or tiny. [by the device]")
]
RowsFlag = Annotated[str | None, typer.Option(help="Rows per call, or batch sizes, as 1,16,64.")]
ContextsFlag = Annotated[str | None, typer.Option(help="Positions that attention sees, as 256,4096.")]
SettingFlag = Annotated[str | None, typer.Option(help="As of smoe serve.")]


@app.command("kernels")
def kernels_command(
    device: DeviceFlag = "cpu",
    preset: PresetFlag = None,
    rows: RowsFlag = None,
    contexts: ContextsFlag = None,
    quantization: SettingFlag = None,
    kv_cache_dtype: SettingFlag = None,
    dtype: SettingFlag = None,
    backend: SettingFlag = None,
    isa: SettingFlag = None,
    threads: SettingFlag = None,
    as_json: JsonFlag = False,
) -> None:
    """Time every kernel against memory's and arithmetic's limits, measured in the same run."""
    settings = {"device": device, "quantization": quantization, "kv_cache_dtype": kv_cache_dtype, "dtype": dtype}
    settings |= {"backend": backend, "isa": isa, "threads": threads}
    raise typer.Exit(_offline("kernels", settings, as_json, preset=preset, rows=rows, contexts=contexts))


@app.command("engine")
def engine_command(
    model: Annotated[str | None, typer.Argument(help="Checkpoint's directory. [random weights]")] = None,
    device: DeviceFlag = "cpu",
    preset: PresetFlag = None,
    batches: RowsFlag = None,
    contexts: ContextsFlag = None,
    prefills: Annotated[str | None, typer.Option(help="Prompt lengths, as 128,512.")] = None,
    quantization: SettingFlag = None,
    kv_cache_dtype: SettingFlag = None,
    sliding_window: SettingFlag = None,
    dtype: SettingFlag = None,
    backend: SettingFlag = None,
    isa: SettingFlag = None,
    threads: SettingFlag = None,
    as_json: JsonFlag = False,
) -> None:
    """Time whole steps, decode and prefill, against memory's and arithmetic's limits, measured in the same run."""
    settings = {"device": device, "quantization": quantization, "kv_cache_dtype": kv_cache_dtype, "dtype": dtype}
    settings |= {"backend": backend, "isa": isa, "threads": threads, "model": model, "sliding_window": sliding_window}
    given = {"preset": preset, "rows": batches, "contexts": contexts, "prefills": prefills}
    raise typer.Exit(_offline("engine", settings, as_json, **given))


def _offline(
    what: Literal["kernels", "engine"], settings: dict[str, Any], as_json: bool, preset: str | None, **lists: str | None
) -> int:
    from server.bench import offline

    try:
        counts = {
            name: None if lists.get(name) is None else offline.numbers(f"--{name}", lists[name] or "")
            for name in ("rows", "contexts", "prefills")
        }
        answer = offline.measure(offline.task_of(what, settings, preset, **counts))
    except offline.BenchError as error:
        return _refused(error)
    typer.echo(json.dumps(answer) if as_json else offline.table(answer))
    return 0


def _refused(error: Exception) -> int:
    typer.echo(f"smoe: {error}", err=True)
    return 2
