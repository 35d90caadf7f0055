"""Output of `smoe experts`: tables, JSON and pictures of shares, or of quality and speed by experts per token."""

import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

from server.cli.experts.measurement import ExpertTextError, SweepPoint

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Counts = Mapping[str, list[list[int]]]  # [layers][experts] by text


def shares(layer: Sequence[int]) -> list[float]:
    """Return each expert's part of a layer's tokens: [3, 1] gives [0.75, 0.25]."""
    total = sum(layer)
    return [tokens / total if total else 0.0 for tokens in layer]


def count_table(counts: Counts) -> str:
    """Return a line of percentages per layer and text, with a star at the expert with most tokens."""
    width = max(map(len, counts))
    num_experts = len(next(iter(counts.values()))[0])
    lines = [f"{'layer':<6}{'text':<{width + 2}}" + "".join(f"{f'e{expert}':>6} " for expert in range(num_experts))]
    for layer in range(len(next(iter(counts.values())))):
        for name, layers in counts.items():
            parts = shares(layers[layer])
            cells = (f"{100 * part:>5.1f}%{'*' if part and part == max(parts) else ' '}" for part in parts)
            lines.append(f"{layer:<6}{name:<{width + 2}}" + "".join(cells).rstrip())
    return "\n".join(lines)


def count_json(counts: Counts) -> str:
    """Return one JSON object: tokens and shares of each text, both [layers][experts]."""
    by_text = {name: {"tokens": layers, "share": list(map(shares, layers))} for name, layers in counts.items()}
    return orjson.dumps({"texts": by_text}).decode()


def sweep_table(points: Sequence[SweepPoint]) -> str:
    """Return a line of speeds and perplexities per number of experts per token (k)."""
    names = list(points[0].perplexity)
    lines = [f"{'k':>3}{'prefill tok/s':>15}{'decode tok/s':>14}" + "".join(f"{name:>14}" for name in names)]
    for point in points:
        quality = "".join(f"{point.perplexity[name]:>14.2f}" for name in names)
        speeds = f"{point.prefill_tokens_per_s:>15,.0f}{point.decode_tokens_per_s:>14,.0f}"
        lines.append(f"{point.experts_per_token:>3}{speeds}{quality}")
    return "\n".join([*lines, "(columns with a text's name are perplexities per token)"])


def sweep_json(points: Sequence[SweepPoint]) -> str:
    """Return one JSON object with a list of points."""
    return orjson.dumps({"dial": list(map(asdict, points))}).decode()


def check_drawable(path: Path) -> None:
    """Raise ExpertTextError if matplotlib is not installed, or the file's folder does not exist."""
    if importlib.util.find_spec("matplotlib") is None:
        raise ExpertTextError("--png needs matplotlib: pip install 'smoe[bench]'")
    if not path.parent.is_dir():
        raise ExpertTextError(f"--png {path}: there is no such folder")


def draw_counts(counts: Counts, path: Path) -> None:
    """Draw a heat map per text, with a row per layer and a column per expert. Raises ExpertTextError."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.4 * len(counts) + 0.8, 3.2), layout="constrained")
    row = figure.subplots(1, len(counts), squeeze=False)[0]
    by_text = {name: list(map(shares, layers)) for name, layers in counts.items()}
    highest = max(part for layers in by_text.values() for layer in layers for part in layer)
    for axes, (name, layers) in zip(row, by_text.items(), strict=True):
        image = axes.imshow(layers, vmin=0, vmax=highest, cmap="viridis", aspect="auto")
        axes.set_title(name)
        axes.set_xlabel("expert")
        axes.set_ylabel("layer")
        axes.set_xticks(range(len(layers[0])))
        axes.set_yticks(range(len(layers)))
    figure.colorbar(image, ax=list(row), label="share of the layer's tokens")
    _save(figure, path)


def draw_sweep(points: Sequence[SweepPoint], path: Path) -> None:
    """Draw perplexity and speed against experts per token. Raises ExpertTextError."""
    from matplotlib.figure import Figure

    numbers = [point.experts_per_token for point in points]
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    quality, speed = figure.subplots(1, 2)
    for name in points[0].perplexity:
        quality.plot(numbers, [point.perplexity[name] for point in points], marker="o", label=name)
    speed.plot(numbers, [point.prefill_tokens_per_s for point in points], marker="o", label="prefill")
    speed.plot(numbers, [point.decode_tokens_per_s for point in points], marker="o", label="decode")
    for axes, label in ((quality, "perplexity per token"), (speed, "tokens/s")):
        _label_axes(axes, numbers, label)
    speed.set_ylim(bottom=0)
    _save(figure, path)


def _label_axes(axes: Any, numbers: Sequence[int], label: str) -> None:
    axes.set_xticks(numbers)
    axes.set_xlabel("experts per token")
    axes.set_ylabel(label)
    axes.grid(alpha=0.3)
    axes.legend()


def _save(figure: "Figure", path: Path) -> None:
    try:
        figure.savefig(path, dpi=110)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ExpertTextError(f"--png {path}: {reason}") from None
