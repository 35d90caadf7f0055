"""Tokens per second against clients, as a picture. Needs matplotlib, which `pip install 'smoe[bench]'` brings."""

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import orjson


class ChartError(Exception):
    """There is nothing to draw, or nothing to draw with. One line."""


def check_available() -> None:
    """Raises ChartError where matplotlib is missing."""
    if importlib.util.find_spec("matplotlib") is None:
        raise ChartError("--plot needs matplotlib: pip install 'smoe[bench]'")


def read(path: Path) -> dict[str, Any]:
    """What `smoe bench serve --json` printed. Raises ChartError."""
    try:
        result = orjson.loads(path.read_bytes())
    except OSError as error:
        raise ChartError(f"{path}: {error.strerror}") from None
    except orjson.JSONDecodeError:
        raise ChartError(f"{path}: this is not JSON") from None
    if not isinstance(result, dict) or result.get("kind") != "serve":
        raise ChartError(f"{path}: this is not what `smoe bench serve --json` prints")
    return result


def points(result: dict[str, Any]) -> list[tuple[int, float]]:
    """(clients, output tokens/s) of the closed loops, by clients."""
    return sorted((run["clients"], run["output_tokens_per_s"]) for run in result["runs"] if run["clients"])


def draw(results: Sequence[dict[str, Any]], path: Path) -> None:
    """One line per result into a file whose ending says its format. Raises ChartError."""
    lines = [(result["label"], points(result)) for result in results]
    if not any(line for _, line in lines):
        raise ChartError("nothing to draw: no closed loop was run")
    check_available()
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.add_subplot()
    for label, line in lines:
        axes.plot([clients for clients, _ in line], [rate for _, rate in line], marker="o", label=label)
    counts = sorted({clients for _, line in lines for clients, _ in line})
    axes.set_xscale("log", base=2)
    axes.set_xticks(counts, labels=[str(count) for count in counts])
    axes.set_ylim(bottom=0)
    axes.set_xlabel("clients")
    axes.set_ylabel("output tokens/s")
    axes.grid(alpha=0.3)
    axes.legend()
    try:
        figure.savefig(path, dpi=150)
    except (OSError, ValueError) as error:
        raise ChartError(f"--plot {path}: {error}") from None
