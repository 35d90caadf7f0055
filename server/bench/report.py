"""Figures of a run from the timings of its requests: percentiles, tokens per second, and a table."""

import itertools
import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

from server.bench.load_generator import RequestTiming

PERCENTILES = (50, 90, 99)
COUNTS_CHUNKS = """\
The server sends no usage: "out" counts chunks, which may have several tokens,
and "in" is unknown."""
MAX_NAME = 14  # characters of a load in the table


def percentile(values: Sequence[float], percent: float) -> float:
    """Return the nearest-rank percentile: the smallest value that at least `percent` % of all values do not exceed.

    Of 10, 20, 30, 40 the 50th is 20 and the 51st is 30. `values` must not be empty.
    """
    rank = math.ceil(percent / 100 * len(values))
    return sorted(values)[max(rank, 1) - 1]


def spread(values: Sequence[float]) -> dict[str, float] | None:
    """Return mean, percentiles and maximum, or None without values."""
    if not values:
        return None
    figures = {f"p{percent}": percentile(values, percent) for percent in PERCENTILES}
    return {"mean": math.fsum(values) / len(values), **figures, "max": max(values)}


def summary(timings: Sequence[RequestTiming], seconds: float) -> dict[str, Any]:
    """Return the figures of a run of `seconds`. Failed requests count as errors and in no other figure.

    `counts_chunks`: a reply had no usage, so that its chunks count as output tokens and its prompt as none.
    """
    completed = [timing for timing in timings if timing.error is None]
    num_input = sum(timing.prompt_tokens for timing in completed)
    num_output = sum(timing.output_tokens for timing in completed)
    return {
        "requests": len(timings),
        "errors": len(timings) - len(completed),
        "error_messages": dict(Counter(timing.error for timing in timings if timing.error).most_common(5)),
        "seconds": seconds,
        "requests_per_s": len(completed) / seconds,
        "counts_chunks": any(timing.counts_chunks for timing in completed),
        "input_tokens": num_input,
        "output_tokens": num_output,
        "input_tokens_per_s": num_input / seconds,
        "output_tokens_per_s": num_output / seconds,
        "ttft_s": spread([timing.chunk_s[0] - timing.start_s for timing in completed if timing.chunk_s]),
        "gap_s": spread([gap for timing in completed for gap in gaps(timing.chunk_s)]),
        "total_s": spread([timing.end_s - timing.start_s for timing in completed]),
    }


def gaps(times_s: Sequence[float]) -> list[float]:
    """Return the times between successive entries."""
    return [later - earlier for earlier, later in itertools.pairwise(times_s)]


def table(runs: Sequence[dict[str, Any]]) -> str:
    """Return a table with one line per run, at most 80 columns wide. --json has the 90th percentiles too."""
    head = (
        f"{'':<15}{'':>8}{'':>7}{'tokens/s':>16}{'first ms':>12}{'gap ms':>10}{'total s':>12}",
        f"{'load':<14}{'requests':>9}{'errors':>7}{'in':>8}{'out':>8}{'p50/p99':>12}{'p50/p99':>10}{'p50/p99':>12}",
    )
    notes = [COUNTS_CHUNKS] if any(run["counts_chunks"] for run in runs) else []
    return "\n".join([*head, *map(_row, runs), *notes])


def _row(run: dict[str, Any]) -> str:
    name = run["load"] if len(run["load"]) <= MAX_NAME else f"{run['load'][: MAX_NAME - 1]}…"
    return (
        f"{name:<14}{run['requests']:>9}{run['errors']:>7}"
        f"{_short(run['input_tokens_per_s']):>8}{_short(run['output_tokens_per_s']):>8}"
        f"{_pair(run['ttft_s'], 1e3):>12}{_pair(run['gap_s'], 1e3):>10}{_pair(run['total_s'], 1):>12}"
    )


def _pair(figures: dict[str, float] | None, scale: float) -> str:
    """Return median and 99th percentile, or "-" without values."""
    return "/".join(_short(scale * figures[name]) for name in ("p50", "p99")) if figures else "-"


def _short(value: float) -> str:
    """Return about three digits: 0.25, 4.51, 45.1, 451, 4512."""
    return f"{value:.{2 if value < 10 else 1 if value < 100 else 0}f}"
