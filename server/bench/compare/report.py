"""Medians over the rounds of a comparison, and ratios: the first server's output tokens per second to another's.

A ratio is that of one round; the median of the rounds' ratios is given, because both servers of a round met the same
machine.
"""

import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

Figures = Mapping[str, Sequence[Mapping[str, Any]]]  # of each round, by server; see server/bench/compare/rounds.py
MAX_NAME = 14


def summary(figures: Figures) -> list[dict[str, Any]]:
    """Return one row per server and load, in the order of the figures."""
    first = next(iter(figures.values()))
    return [
        _row(name, [rounds[index] for rounds in _runs(figures[name])], [rounds[index] for rounds in _runs(first)])
        | {
            "ready_s": statistics.median(result["ready_s"] for result in figures[name]),
            "peak_bytes": statistics.median(result["peak_bytes"] for result in figures[name]),
        }
        for name in figures
        for index in range(len(first[0]["runs"]))
    ]


def _runs(results: Sequence[Mapping[str, Any]]) -> list[Sequence[Mapping[str, Any]]]:
    return [result["runs"] for result in results]


def _row(name: str, runs: Sequence[Mapping[str, Any]], first: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    ratios = [
        ours["output_tokens_per_s"] / theirs["output_tokens_per_s"] if theirs["output_tokens_per_s"] else None
        for ours, theirs in zip(first, runs, strict=True)
    ]
    known = [ratio for ratio in ratios if ratio is not None]
    return {
        "server": name,
        "load": runs[0]["load"],
        "clients": runs[0]["clients"],
        "errors": sum(run["errors"] for run in runs),
        "output_tokens_per_s": statistics.median(run["output_tokens_per_s"] for run in runs),
        "ttft_p50_s": _median(runs, "ttft_s", "p50"),
        "gap_p50_s": _median(runs, "gap_s", "p50"),
        "gap_p99_s": _median(runs, "gap_s", "p99"),
        "ratios": ratios,
        "ratio": statistics.median(known) if known else None,
    }


def _median(runs: Sequence[Mapping[str, Any]], name: str, part: str) -> float | None:
    values = [run[name][part] for run in runs if run[name]]
    return statistics.median(values) if values else None


def as_chart(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the rows as results for server/bench/chart.py, one per server."""
    return [
        {"label": name, "runs": [row for row in rows if row["server"] == name]}
        for name in dict.fromkeys(row["server"] for row in rows)
    ]


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return a table of at most 80 columns, one line per row of `summary`."""
    first = rows[0]["server"]
    head = (
        f"{'':<14}{'':<12}{'out':>8}{'first ms':>10}{'gap ms':>14}{'ready':>7}{'memory':>8}{_cut(first, 5) + ' /':>7}",
        f"{'server':<14}{'load':<12}{'tok/s':>8}{'p50':>10}{'p50/p99':>14}{'s':>7}{'MB':>8}{'it':>7}",
    )
    return "\n".join([*head, *_lines(rows)])


def _lines(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    previous = None
    for row in rows:
        is_first = row["server"] != previous
        previous = row["server"]
        name = _cut(row["server"], MAX_NAME - 1) if is_first else ""
        start = f"{row['ready_s']:>7.1f}{row['peak_bytes'] / 1e6:>8.0f}" if is_first else " " * 15
        gap = f"{_ms(row['gap_p50_s'])}/{_ms(row['gap_p99_s'])}"
        ratio = f"{row['ratio']:.2f}" if row["ratio"] else "-"
        failed = f"  {row['errors']} failed" if row["errors"] else ""
        yield (
            f"{name:<14}{_cut(row['load'], 11):<12}{row['output_tokens_per_s']:>8.1f}{_ms(row['ttft_p50_s']):>10}"
            f"{gap:>14}{start}{ratio:>7}{failed}"
        )


def _ms(seconds: float | None) -> str:
    return "-" if seconds is None else f"{1000 * seconds:.1f}"


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else f"{text[: length - 1]}…"
