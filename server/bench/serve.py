"""`smoe bench serve`: the runs that were asked for, one after the other, and their figures."""

import random
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO, cast

from server.bench.http_client import Endpoint, HttpError
from server.bench.load_generator import Api, RequestTiming, Target, ask, closed_loop, first_model, open_loop
from server.bench.report import summary
from server.bench.workload import BenchRequest, PromptKind, Range, WorkError, draw_work, read_trace, with_arrivals

MIN_REQUESTS_PER_CLIENT = 3
WARM_UP_SEED = 1_000_003  # other prompts than the measured ones: no cache may profit
WARM_UP_TOKENS = 8


@dataclass(frozen=True)
class Options:
    """What is run."""

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
    clients: tuple[int, ...]  # one closed loop each, unless a rate or a trace is given
    rate: float | None
    trace: Path | None
    num_warm_up: int
    seed: int


def options_of(given: Mapping[str, Any]) -> Options:
    """From the command's arguments. Raises WorkError, one line that names the flag."""
    api, kind = given["api"], given["prompt"]
    if api not in ("completions", "chat"):
        raise WorkError(f"--api {api}: should be completions or chat")
    if kind not in ("tokens", "text"):
        raise WorkError(f"--prompt {kind}: should be tokens or text")
    if given["rate"] is not None and (given["rate"] <= 0 or given["trace"] is not None):
        raise WorkError("--rate: should be more than 0, and goes without --trace")
    try:
        endpoint = Endpoint.parse(given["url"], given["api_key"])
        clients = tuple(int(count) for count in given["clients"].split(","))
    except ValueError as error:
        raise WorkError(str(error)) from None
    if min(clients) < 1:
        raise WorkError(f"--clients {given['clients']}: each count should be 1 or more")
    return Options(
        endpoint=endpoint,
        label=given["label"] or endpoint.url,
        model=given["model"],
        api=cast("Api", api),
        ignore_eos=not given["no_ignore_eos"],
        kind=cast("PromptKind", "text" if api == "chat" else kind),
        prompts=_range("--prompt-tokens", given["prompt_tokens"]),
        outputs=_range("--output-tokens", given["output_tokens"]),
        vocab_size=given["vocab_size"],
        num_requests=given["requests"],
        clients=clients,
        rate=given["rate"],
        trace=given["trace"],
        num_warm_up=given["warmup"],
        seed=given["seed"],
    )


def _range(flag: str, text: str) -> Range:
    try:
        return Range.parse(text)
    except WorkError as error:
        raise WorkError(f"{flag}: {error}") from None


async def measure(options: Options, progress: TextIO) -> dict[str, Any]:
    """Every run's figures, under what they were measured with. Raises WorkError, HttpError, OSError."""
    model = options.model or await first_model(options.endpoint)
    target = Target(options.endpoint, model, options.api, options.ignore_eos)
    await _warm_up(target, options)
    runs = []
    for name, num_clients, work in _planned(options):
        progress.write(f"{options.label}: {name}, {len(work)} requests\n")
        progress.flush()
        start_s = time.perf_counter()
        records = await (closed_loop(target, work, num_clients) if num_clients else open_loop(target, work))
        seconds = time.perf_counter() - start_s
        runs.append({"load": name, "clients": num_clients, "rate": options.rate, **summary(records, seconds)})
    return {
        "kind": "serve",
        "label": options.label,
        "url": options.endpoint.url,
        "model": model,
        "api": options.api,
        "prompt": options.kind,
        "seed": options.seed,
        "runs": runs,
    }


def _planned(options: Options) -> list[tuple[str, int | None, list[BenchRequest]]]:
    """Name, clients (None: an open loop) and work of each run. Every run has prompts of its own."""
    rng = random.Random(options.seed)
    if options.trace is not None:
        return [(f"trace {options.trace.name}", None, read_trace(options.trace, options.kind, options.vocab_size, rng))]
    if options.rate is not None:
        return [(f"{options.rate:g} per s", None, with_arrivals(_drawn(options, 0, rng), options.rate, rng))]
    return [
        (f"{count} client{'s' * (count > 1)}", count, _drawn(options, MIN_REQUESTS_PER_CLIENT * count, rng))
        for count in options.clients
    ]


def _drawn(options: Options, at_least: int, rng: random.Random) -> list[BenchRequest]:
    count = max(options.num_requests, at_least)
    return draw_work(options.kind, options.prompts, options.outputs, count, options.vocab_size, rng)


async def _warm_up(target: Target, options: Options) -> None:
    """Raises HttpError where the server refuses: measuring would only count errors."""
    rng = random.Random(options.seed + WARM_UP_SEED)
    longest = Range(options.prompts.high, options.prompts.high)
    few = Range(WARM_UP_TOKENS, WARM_UP_TOKENS)
    for work in draw_work(options.kind, longest, few, options.num_warm_up, options.vocab_size, rng):
        record: RequestTiming = await ask(target, work, time.perf_counter())
        if record.error is not None:
            raise HttpError(f"{options.endpoint.url}: {record.error}")
