"""`smoe bench compare`: flags, and what is printed."""

import json
import signal
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from server.cli.bench.load_flags import (
    ApiFlag,
    EndEarlyFlag,
    OutputTokensFlag,
    PromptFlag,
    PromptTokensFlag,
    RequestsFlag,
    VocabSizeFlag,
)
from server.cli.errors import report_error

STOPPED = 128 + signal.SIGTERM  # exit code of a process that SIGTERM ends


def compare_command(
    server: Annotated[
        list[str],
        typer.Option(
            help="A server: its name, and the command that runs it, with {port} in the place of the port. Twice or "
            "more; the first one is compared with the others.",
            metavar="NAME=COMMAND",
        ),
    ],
    rounds: Annotated[int, typer.Option(min=1, help="Rounds; the servers take turns in each.")] = 3,
    clients: Annotated[str, typer.Option(help="Clients in a closed loop; one run for each number.")] = "1,16",
    requests: RequestsFlag = 48,
    api: ApiFlag = "completions",
    prompt: PromptFlag = "tokens",
    prompt_tokens: PromptTokensFlag = "16,256",
    output_tokens: OutputTokensFlag = "64",
    vocab_size: VocabSizeFlag = 2000,
    no_ignore_eos: EndEarlyFlag = False,
    warmup: Annotated[int, typer.Option(min=0, help="Requests before the measured ones of each server.")] = 2,
    seed: Annotated[int, typer.Option(help="Seed of lengths and prompts; each round has its own.")] = 0,
    health_path: Annotated[str, typer.Option(help="Path that answers with 200 when a server is ready.")] = "/health",
    start_timeout: Annotated[float, typer.Option(min=1, help="Seconds that a server gets to become ready.")] = 600.0,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object with the figures of all runs.")
    ] = False,
    plot: Annotated[
        Path | None,
        typer.Option(
            "--plot", help="Draw tokens/s against clients into this file. Needs matplotlib.", metavar="FILE.png"
        ),
    ] = None,
) -> None:
    """Run servers in turns under the same load; report tokens/s, latencies, memory and ratios.

    Each round starts every server, measures it under each load and stops it. Servers must not keep prompts of earlier
    requests: --no-enable-prefix-caching here. Exits with 1 if a request failed.

    \b
    smoe bench compare --server 'smoe=smoe serve CKPT --port {port} --no-enable-prefix-caching' \\
        --server 'llama=llama-server -m CKPT.gguf -t 2 -np 16 --no-cache-prompt --port {port}'
    """
    given = {name: value for name, value in locals().items() if name != "as_json"}
    raise typer.Exit(_compare(given, as_json))


def _compare(given: Mapping[str, Any], as_json: bool) -> int:
    import asyncio

    import uvloop

    from server.bench import chart
    from server.bench.compare import peak_memory, report, rounds, server_process
    from server.bench.workload import WorkloadError

    try:
        comparison = _parse(given)
        peak_memory.check_available()
        if given["plot"] is not None:
            chart.check_available()
        figures = uvloop.run(_until_stopped(rounds.run(comparison, sys.stderr, _show)))
        rows = report.summary(figures)
        if given["plot"] is not None:
            chart.draw(report.as_chart(rows), given["plot"])
    except (WorkloadError, server_process.ServerError, chart.ChartError) as error:
        return report_error(error)
    except asyncio.CancelledError:
        return STOPPED
    typer.echo(json.dumps({"kind": "compare", "rounds": figures, "rows": rows}) if as_json else report.table(rows))
    return 1 if any(row["errors"] for row in rows) else 0


def _parse(given: Mapping[str, Any]) -> Any:
    """Return the Comparison of the flags. Raises WorkloadError and ServerError."""
    from server.bench import serve
    from server.bench.compare import rounds

    unused = {"url": "http://127.0.0.1", "api_key": None, "model": None, "label": None, "rate": None, "trace": None}
    return rounds.Comparison(
        servers=rounds.parse_servers(given["server"]),
        load=serve.parse_options({**given, **unused}),
        num_rounds=given["rounds"],
        health_path=given["health_path"],
        start_timeout_s=given["start_timeout"],
        log_folder=Path(tempfile.mkdtemp(prefix="smoe-compare-")),
    )


async def _until_stopped(run: Any) -> Any:
    """Await `run`; SIGTERM cancels it, so that the server under test is stopped too."""
    import asyncio

    task = asyncio.ensure_future(run)
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    return await task


def _show(number: int, name: str, figures: Mapping[str, Any]) -> None:
    """Write a line about a server's figures in one round."""
    rates = ", ".join(f"{run['load']} {run['output_tokens_per_s']:.1f}" for run in figures["runs"])
    sys.stderr.write(f"round {number + 1}, {name}: output tokens/s: {rates}\n")
