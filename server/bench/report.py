"""From records to figures: percentiles, tokens per second, one JSON object, a table."""

import itertools
import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

from server.bench.load_generator import RequestTiming

PERCENTILES = (50, 90, 99)


def percentile(values: Sequence[float], percent: float) -> float:
    """The smallest value that at least `percent` of all do not exceed (nearest rank). Needs one value.

    Of 10, 20, 30, 40 the 50th is 20 and the 51st is 30.
    """
    rank = math.ceil(percent / 100 * len(values))
    return sorted(values)[max(rank, 1) - 1]


def spread(values: Sequence[float]) -> dict[str, float] | None:
    """Mean, percentiles and maximum; None where there are no values."""
    if not values:
        return None
    figures = {f"p{percent}": percentile(values, percent) for percent in PERCENTILES}
    return {"mean": math.fsum(values) / len(values), **figures, "max": max(values)}


def summary(records: Sequence[RequestTiming], seconds: float) -> dict[str, Any]:
    """One run's figures. A request that failed counts as an error and nowhere else."""
    whole = [record for record in records if record.error is None]
    num_input = sum(record.prompt_tokens for record in whole)
    num_output = sum(record.output_tokens for record in whole)
    return {
        "requests": len(records),
        "errors": len(records) - len(whole),
        "error_messages": dict(Counter(record.error for record in records if record.error).most_common(5)),
        "seconds": seconds,
        "requests_per_s": len(whole) / seconds,
        "input_tokens": num_input,
        "output_tokens": num_output,
        "input_tokens_per_s": num_input / seconds,
        "output_tokens_per_s": num_output / seconds,
        "ttft_s": spread([record.chunk_s[0] - record.start_s for record in whole if record.chunk_s]),
        "gap_s": spread([gap for record in whole for gap in gaps(record.chunk_s)]),
        "total_s": spread([record.end_s - record.start_s for record in whole]),
    }


def gaps(moments: Sequence[float]) -> list[float]:
    """The time between neighbours."""
    return [later - earlier for earlier, later in itertools.pairwise(moments)]


def table(runs: Sequence[dict[str, Any]]) -> str:
    """The runs, one line each."""
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
