"""`smoe bench steps`: a server's own times of its steps, under closed loops of several sizes.

Steps of a server take longer than the same steps without one: it receives and answers requests beside them, and its
processes share caches and cores with the engine. So they are measured where they happen.
"""

import random
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, median
from typing import Any, TextIO

import msgspec

from engine.planning.fitted_steps import read_fitted
from engine.planning.logged_steps import LoggedStep, first_token_s, read_step_log
from server.bench.http_client import Endpoint, HttpError
from server.bench.load_generator import RequestTiming, Target, closed_loop, first_model, send
from server.bench.workload import BenchRequest, Range, draw_requests

NUM_WARM_UP = 2
MIN_REQUESTS = 3  # of each client, however long they take


@dataclass(frozen=True)
class Calibration:
    """Load of the measurement."""

    clients: tuple[int, ...]  # a closed loop for each number; if 1 is the first, it also gives the time of a request
    seconds: float  # of each loop
    prompts: Range
    outputs: Range
    vocab_size: int
    seed: int = 0


async def measure(endpoint: Endpoint, log: Path, calibration: Calibration, progress: TextIO) -> dict[str, Any]:
    """Put the load on a server that writes `log`, from its start; return its steps.

    Raises HttpError if a request fails, MeasurementError and OSError.
    """
    target = Target(endpoint, await first_model(endpoint))
    rng = random.Random(calibration.seed)
    for item in _draw(calibration, NUM_WARM_UP, rng):
        _check([await send(target, item, time.perf_counter())])
    first_tokens: list[float] = []
    for count in calibration.clients:
        progress.write(f"steps: {count} {'client' if count == 1 else 'clients'}, {calibration.seconds:g} s\n")
        timings = await closed_loop(target, _until(calibration, count, rng), count)
        _check(timings)
        if count == calibration.clients[0] == 1:
            first_tokens += [timing.chunk_s[0] - timing.start_s for timing in timings if timing.chunk_s]
    steps = read_step_log(log)
    return {
        "kind": "steps",
        "request_s": _request_s(steps, first_tokens),
        "steps": msgspec.to_builtins(_behind_warm_up(steps)),
    }


def _draw(calibration: Calibration, count: int, rng: random.Random) -> list[BenchRequest]:
    return draw_requests("tokens", calibration.prompts, calibration.outputs, count, calibration.vocab_size, rng)


def _until(calibration: Calibration, num_clients: int, rng: random.Random) -> Iterator[BenchRequest]:
    """Draw requests until the loop's time is over, and at least MIN_REQUESTS of each client."""
    end_s, num_drawn = time.perf_counter() + calibration.seconds, 0
    while time.perf_counter() < end_s or num_drawn < MIN_REQUESTS * num_clients:
        num_drawn += 1
        yield from _draw(calibration, 1, rng)


def _check(timings: Sequence[RequestTiming]) -> None:
    for timing in timings:
        if timing.error is not None:
            raise HttpError(timing.error)


def _behind_warm_up(steps: Sequence[LoggedStep]) -> list[LoggedStep]:
    num_added = 0
    for index, step in enumerate(steps):
        num_added += len(step.added)
        if num_added > NUM_WARM_UP:
            return list(steps[index:])
    return []


def _request_s(steps: Sequence[LoggedStep], first_tokens_s: Sequence[float]) -> float:
    """Return the seconds of a single client's request beside its steps, in the median."""
    in_steps = list(first_token_s(steps))[NUM_WARM_UP:]
    beside = [client_s - step_s for client_s, step_s in zip(first_tokens_s, in_steps, strict=False)]
    return max(0.0, median(beside)) if beside else 0.0


def table(figures: dict[str, Any]) -> str:
    """Return a table of the steps by their number of rows: seconds as measured, and as fitted. At most 80 columns wide.

    Raises MeasurementError.
    """
    times = read_fitted(figures)
    by_rows: dict[int, list[LoggedStep]] = defaultdict(list)
    for step in msgspec.convert(figures["steps"], list[LoggedStep]):
        by_rows[step.shape.num_rows.bit_length()].append(step)
    lines = [f"{'rows':<14}{'steps':>8}{'mean ms':>10}{'fitted':>10}"]
    for bits, steps in sorted(by_rows.items()):
        rows = f"{1 << bits - 1} to {(1 << bits) - 1}" if bits > 1 else "1"
        measured, expected = mean(s.seconds for s in steps), mean(times.shape_s(s.shape) for s in steps)
        lines.append(f"{rows:<14}{len(steps):>8}{1e3 * measured:>10.2f}{1e3 * expected:>10.2f}")
    lines.append(f"a request takes {1e3 * times.request_s:.1f} ms beside its steps")
    return "\n".join(lines)
