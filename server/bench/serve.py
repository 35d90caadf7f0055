"""`smoe bench serve`: one run per load, one after the other, and the figures of each."""

import asyncio
import random
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO, cast

from server.bench.http_client import Endpoint, HttpError
from server.bench.load_generator import Api, RequestTiming, Target, closed_loop, first_model, open_loop, send
from server.bench.progress import RunProgress
from server.bench.report import summary
from server.bench.workload import (
    BenchRequest,
    PromptKind,
    Range,
    WorkloadError,
    draw_requests,
    read_trace,
    with_arrivals,
)

MIN_REQUESTS_PER_CLIENT = 3
WARM_UP_SEED = 1_000_003  # added: prompts differ from the measured ones, so that no prefix is cached
WARM_UP_TOKENS = 8


@dataclass(frozen=True)
class Options:
    """Parsed options of the command."""

    endpoint: Endpoint
    label: str
    model: str | None
    api: Api
    ignore_eos: bool
    kind: PromptKind
    prompts: Range
    outputs: Range
    vocab_size: int
    num_requests: int
    clients: tuple[int, ...]  # a closed loop for each number, unless there is a rate or a trace
    rate: float | None
    trace: Path | None
    num_warm_up: int
    seed: int


def parse_options(given: Mapping[str, Any]) -> Options:
    """Parse the command's arguments. Raises WorkloadError that names the flag."""
    api, kind = given["api"], given["prompt"]
    if api not in ("completions", "chat"):
        raise WorkloadError(f"--api {api}: should be completions or chat")
    if kind not in ("tokens", "text"):
        raise WorkloadError(f"--prompt {kind}: should be tokens or text")
    if given["rate"] is not None and (given["rate"] <= 0 or given["trace"] is not None):
        raise WorkloadError("--rate: should be more than 0, and excludes --trace")
    try:
        endpoint = Endpoint.parse(given["url"], given["api_key"])
    except ValueError as error:
        raise WorkloadError(str(error)) from None
    return Options(
        endpoint=endpoint,
        label=given["label"] or endpoint.url,
        model=given["model"],
        api=cast("Api", api),
        ignore_eos=not given["no_ignore_eos"],
        kind=cast("PromptKind", "text" if api == "chat" else kind),
        prompts=parse_range("--prompt-tokens", given["prompt_tokens"]),
        outputs=parse_range("--output-tokens", given["output_tokens"]),
        vocab_size=given["vocab_size"],
        num_requests=given["requests"],
        clients=parse_clients(given["clients"]),
        rate=given["rate"],
        trace=given["trace"],
        num_warm_up=given["warmup"],
        seed=given["seed"],
    )


def parse_clients(text: str) -> tuple[int, ...]:
    """Parse "1,4,16". Raises WorkloadError."""
    try:
        clients = tuple(map(int, text.split(",")))
    except ValueError:
        raise WorkloadError(f"--clients {text}: should be numbers such as 1,4,16") from None
    if min(clients) < 1:
        raise WorkloadError(f"--clients {text}: each count should be 1 or more")
    return clients


def parse_range(flag: str, text: str) -> Range:
    """Parse the value of a flag. Raises WorkloadError, which names it."""
    try:
        return Range.parse(text)
    except WorkloadError as error:
        raise WorkloadError(f"{flag}: {error}") from None


async def measure(options: Options, progress: TextIO) -> dict[str, Any]:
    """Warm up, do all runs, and return their figures and the options. Raises WorkloadError, HttpError, OSError.

    Ctrl-C, which cancels this task, ends the runs: the last one has the requests that had ended, if there are any.
    """
    model = options.model or await first_model(options.endpoint)
    target = Target(options.endpoint, model, options.api, options.ignore_eos)
    await _warm_up(target, options)
    runs: list[dict[str, Any]] = []
    is_interrupted = False
    for name, num_clients, requests in _plan_runs(options):
        timings: list[RequestTiming] = []
        shown = RunProgress(progress, f"{options.label}: {name}", len(requests))
        start_s = time.perf_counter()
        try:
            await _send(target, requests, num_clients, timings, shown)
        except asyncio.CancelledError:
            is_interrupted = True
        seconds = time.perf_counter() - start_s
        shown.end()
        if timings:
            runs.append({"load": name, "clients": num_clients, "rate": options.rate, **summary(timings, seconds)})
        if is_interrupted:
            break
    return {
        "kind": "serve",
        "label": options.label,
        "url": options.endpoint.url,
        "model": model,
        "api": options.api,
        "prompt": options.kind,
        "seed": options.seed,
        "interrupted": is_interrupted,
        "runs": runs,
    }


async def _send(
    target: Target,
    requests: list[BenchRequest],
    num_clients: int | None,
    timings: list[RequestTiming],
    shown: RunProgress,
) -> None:
    """Send the requests of a run; append to `timings` as they end, so that those are known after Ctrl-C, too."""

    def record(timing: RequestTiming) -> None:
        timings.append(timing)
        shown.request_ended()

    if num_clients:
        await closed_loop(target, requests, num_clients, record)
    else:
        await open_loop(target, requests, record)


def _plan_runs(options: Options) -> list[tuple[str, int | None, list[BenchRequest]]]:
    """Return name, number of clients (None: open loop) and requests of each run. Every run has its own prompts."""
    rng = random.Random(options.seed)
    if options.trace is not None:
        return [(f"trace {options.trace.name}", None, read_trace(options.trace, options.kind, options.vocab_size, rng))]
    if options.rate is not None:
        return [(f"{options.rate:g} per s", None, with_arrivals(_draw(options, 0, rng), options.rate, rng))]
    return [
        (
            f"{count} {'client' if count == 1 else 'clients'}",
            count,
            _draw(options, MIN_REQUESTS_PER_CLIENT * count, rng),
        )
        for count in options.clients
    ]


def _draw(options: Options, min_count: int, rng: random.Random) -> list[BenchRequest]:
    count = max(options.num_requests, min_count)
    return draw_requests(options.kind, options.prompts, options.outputs, count, options.vocab_size, rng)


async def _warm_up(target: Target, options: Options) -> None:
    """Send some requests. Raises HttpError if one fails: a measurement would only count errors."""
    rng = random.Random(options.seed + WARM_UP_SEED)
    longest = Range(options.prompts.high, options.prompts.high)
    short = Range(WARM_UP_TOKENS, WARM_UP_TOKENS)
    for item in draw_requests(options.kind, longest, short, options.num_warm_up, options.vocab_size, rng):
        timing = await send(target, item, time.perf_counter())
        if timing.error is not None:
            raise HttpError(f"{options.endpoint.url}: {timing.error}")
