"""Figures of a run from the timings of its requests: percentiles, tokens per second, and a table."""

import itertools
import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

from server.bench.load_generator import RequestTiming

PERCENTILES = (50, 90, 99)


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
    """Return the figures of a run of `seconds`. Failed requests count as errors and in no other figure."""
    completed = [timing for timing in timings if timing.error is None]
    num_input = sum(timing.prompt_tokens for timing in completed)
    num_output = sum(timing.output_tokens for timing in completed)
    return {
        "requests": len(timings),
        "errors": len(timings) - len(completed),
        "error_messages": dict(Counter(timing.error for timing in timings if timing.error).most_common(5)),
        "seconds": seconds,
        "requests_per_s": len(completed) / seconds,
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
    """Return a table with one line per run."""
    head = (
        f"{'load':<16}{'requests':>9}{'errors':>7}{'in tok/s':>10}{'out tok/s':>10}"
        f"{'ttft p50/p90/p99 ms':>24}{'gap p50/p90/p99 ms':>22}{'total p50/p99 s':>18}"
    )
    return "\n".join([head, *map(_row, runs)])


def _row(run: dict[str, Any]) -> str:
    total = run["total_s"]
    totals = f"{total['p50']:.2f}/{total['p99']:.2f}" if total else "-"
    return (
        f"{run['load']:<16}{run['requests']:>9}{run['errors']:>7}"
        f"{run['input_tokens_per_s']:>10.1f}{run['output_tokens_per_s']:>10.1f}"
        f"{_milliseconds(run['ttft_s']):>24}{_milliseconds(run['gap_s']):>22}{totals:>18}"
    )


def _milliseconds(figures: dict[str, float] | None) -> str:
    return "/".join(f"{1e3 * figures[f'p{percent}']:.1f}" for percent in PERCENTILES) if figures else "-"
