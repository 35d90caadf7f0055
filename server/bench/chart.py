"""Draws tokens per second against clients. Needs matplotlib: `pip install 'smoe[bench]'`."""

import importlib.util
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import orjson


class ChartError(Exception):
    """Invalid results, or no matplotlib. One line."""


def check_available() -> None:
    """Raise ChartError if matplotlib is not installed."""
    if importlib.util.find_spec("matplotlib") is None:
        raise ChartError("--plot needs matplotlib: pip install 'smoe[bench]'")


def check_can_draw(path: Path, *, is_open_loop: bool) -> None:
    """Raise ChartError if a chart of a measurement that has not begun could not be drawn into this file."""
    if is_open_loop:
        raise ChartError("--plot draws closed loops: give neither --rate nor --trace")
    check_available()
    from matplotlib.backend_bases import FigureCanvasBase

    if not os.path.isdir(path.parent):
        raise ChartError(f"--plot {path}: no such folder")
    if os.path.isdir(path) or not os.access(path if os.path.exists(path) else path.parent, os.W_OK):
        raise ChartError(f"--plot {path}: no file can be written there")
    kinds = FigureCanvasBase.get_supported_filetypes()
    if path.suffix and path.suffix[1:].lower() not in kinds:
        raise ChartError(f"--plot {path}: the name should end in one of {', '.join(f'.{kind}' for kind in kinds)}")


def read(path: Path) -> dict[str, Any]:
    """Read a file with the output of `smoe bench serve --json`. Raises ChartError."""
    try:
        result = orjson.loads(path.read_bytes())
    except OSError as error:
        raise ChartError(f"{path}: {error.strerror}") from None
    except orjson.JSONDecodeError:
        raise ChartError(f"{path}: this is not JSON") from None
    if not isinstance(result, dict) or result.get("kind") != "serve":
        raise ChartError(f"{path}: this is not the output of `smoe bench serve --json`")
    return result


def points(result: dict[str, Any]) -> list[tuple[int, float]]:
    """Return (clients, output tokens/s) of the closed loops, ordered by clients."""
    return sorted((run["clients"], run["output_tokens_per_s"]) for run in result["runs"] if run["clients"])


def draw(results: Sequence[dict[str, Any]], path: Path) -> None:
    """Draw one line per result. The suffix of `path` selects the format. Raises ChartError."""
    lines = [(result["label"], points(result)) for result in results]
    if not any(line for _, line in lines):
        raise ChartError("nothing to draw: the results have no closed loop")
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
    except OSError as error:
        raise ChartError(f"--plot {path}: {error.strerror or error}") from None
    except ValueError as error:  # a suffix that is no format
        raise ChartError(f"--plot {path}: {error}") from None
