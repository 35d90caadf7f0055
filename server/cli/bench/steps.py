"""`smoe bench steps`: flags, and the server that the command starts for itself."""

import json
import signal
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from server.cli.bench.load_flags import OutputTokensFlag, PromptTokensFlag, VocabSizeFlag
from server.cli.errors import report_error
from server.cli.settings.options import given_settings

SETTINGS = (
    *("model", "rope_theta", "sliding_window", "device", "backend", "isa", "threads", "tensor_parallel_size"),
    *("dtype", "quantization", "kv_cache_dtype", "weights_memory", "expert_memory", "deterministic"),
    *("max_model_len", "max_num_seqs", "max_num_batched_tokens", "kv_cache_memory_bytes", "async_scheduling"),
)
LOG_NAME, STEPS_NAME = "server.log", "steps.jsonl"


def steps_command(
    context: typer.Context,
    clients: Annotated[
        str, typer.Option(help="Clients in a closed loop; one loop for each number. The first should be 1.")
    ] = "1,2,4,8,16,32",
    seconds: Annotated[float, typer.Option(min=0.1, help="Seconds of each loop; it may take longer.")] = 8.0,
    prompt_tokens: PromptTokensFlag = "16,512",
    output_tokens: OutputTokensFlag = "16,64",
    vocab_size: VocabSizeFlag = 2000,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object, for `smoe plan --steps`.")] = False,
) -> None:
    """Start a server with these settings, put load on it, and report how long its steps take: for `smoe plan --rate`.

    Give the settings and lengths of the load that you plan for. The machine should be idle. The server drafts nothing:
    plans are without speculation.

    \b
    smoe bench steps /models/Mixtral-8x7B-Instruct-v0.1 --quantization int8 --json > steps.json
    """
    given = {"clients": clients, "prompt_tokens": prompt_tokens, "output_tokens": output_tokens}
    raise typer.Exit(
        _measure(given_settings(context), {**given, "seconds": seconds, "vocab_size": vocab_size}, as_json=as_json)
    )


def _measure(settings: Mapping[str, Any], given: Mapping[str, Any], *, as_json: bool) -> int:
    import uvloop

    from engine.planning.step_time_model import MeasurementError
    from server.bench import step_calibration
    from server.bench.http_client import Endpoint, HttpError
    from server.bench.serve import parse_clients, parse_range
    from server.bench.workload import WorkloadError
    from server.cli.client.api_client import ApiError
    from server.cli.client_commands import client_of
    from server.cli.run.own_server import own_server, serve_arguments

    before = signal.signal(signal.SIGTERM, _exit)
    try:
        calibration = step_calibration.Calibration(
            parse_clients(given["clients"]),
            given["seconds"],
            parse_range("--prompt-tokens", given["prompt_tokens"]),
            parse_range("--output-tokens", given["output_tokens"]),
            given["vocab_size"],
        )
        with tempfile.TemporaryDirectory(prefix="smoe-steps-") as name:
            folder = Path(name)
            flags = [*serve_arguments(settings), "--speculation", "off", "--step-log", str(folder / STEPS_NAME)]
            with own_server(flags, folder / LOG_NAME) as server:
                server.wait_ready(lambda words: None)
                endpoint = Endpoint.parse(server.url, client_of(server.url, None).api_key)
                measuring = step_calibration.measure(endpoint, folder / STEPS_NAME, calibration, sys.stderr)
                figures = uvloop.run(measuring)
        _check(figures)
        text = json.dumps(figures) if as_json else step_calibration.table(figures)
    except MeasurementError as error:
        return report_error(MeasurementError(f"the file of the server's --step-log {error}"))
    except (WorkloadError, ApiError, HttpError, OSError) as error:
        return report_error(error)
    finally:
        signal.signal(signal.SIGTERM, before)
    typer.echo(text)
    return 0


def _check(figures: Mapping[str, Any]) -> None:
    """Raise MeasurementError if `smoe plan` would refuse the steps."""
    from engine.planning.fitted_steps import read_fitted
    from engine.planning.step_time_model import MeasurementError

    try:
        read_fitted(figures)
    except MeasurementError as error:
        raise MeasurementError(f"{error}: raise --seconds or --output-tokens") from None


def _exit(signum: int, _frame: object) -> None:
    sys.exit(128 + signum)  # ends the server on the way
