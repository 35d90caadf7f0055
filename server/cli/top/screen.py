"""The lines of `smoe top`, from the replies of a server."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from server.cli.chat.expert_bars import BARS, expert_lines
from server.cli.colours import Colours
from server.cli.terminal_text import escape_controls

LABEL_WIDTH = 12
NUM_BARS = 60  # intervals in a line of bars


@dataclass(frozen=True)
class Snapshot:
    """Replies of one moment."""

    model: str
    url: str
    is_ready: bool
    load: Mapping[str, Any]  # of GET /load/recent
    experts: Mapping[str, Any] | None  # of GET /experts; None if the engine did not answer


def screen_lines(
    snapshot: Snapshot, colours: Colours, width: int, height: int, *, is_redrawn: bool = True
) -> list[str]:
    """Return at most `height` lines of at most `width` columns. `is_redrawn`: until Ctrl-C, which they then name."""
    load = snapshot.load
    ttft = f"p50 {_ms(load['ttft_p50_ms'])}, p99 {_ms(load['ttft_p99_ms'])}"
    num_bars = min(NUM_BARS, max(0, width - LABEL_WIDTH - 24))
    rows = [
        ("requests", f"{load['running'][-1]} running, {load['waiting'][-1]} waiting", load["running"]),
        ("answers", f"{load['generated_tokens_per_s'][-1]:,.0f} tokens/s", load["generated_tokens_per_s"]),
        ("prompts", f"{load['prompt_tokens_per_s'][-1]:,.0f} tokens/s", load["prompt_tokens_per_s"]),
        ("KV cache", f"{load['kv_usage'][-1]:.0%}", load["kv_usage"]),
        ("step", _ms(load["step_ms"]), load["step_ms"]),
        ("first token", ttft, load["ttft_p50_ms"]),
    ]
    period = _clip(_period(snapshot, num_bars, is_redrawn=is_redrawn), width)
    lines = [_head(snapshot, colours, width), colours.dim(period), ""]
    lines += [_row(colours, width, name, text, values[-num_bars:] if num_bars else []) for name, text, values in rows]
    if snapshot.experts is not None:
        lines += [
            "",
            colours.dim(_clip("experts, last minute", width)),
            *(_clip(line, width) for line in expert_lines(snapshot.experts)),
        ]
    return lines[:height]


def bars(values: Sequence[float | None]) -> str:
    """Return a bar per value; the largest is full. A value that was not measured is a blank.

    Example: [0, 2, None, 4] gives " ▄ █".
    """
    highest = max((value for value in values if value), default=0)
    steps = len(BARS) - 1
    return "".join(
        BARS[-(-round(1000 * (value or 0)) * steps // round(1000 * highest))] if highest else " " for value in values
    )


def _head(snapshot: Snapshot, colours: Colours, width: int) -> str:
    """Return the model and its state. All lines are clipped before they are coloured: codes take no columns."""
    model = _clip(snapshot.model, width - 12)
    state = f"  {'ready' if snapshot.is_ready else 'not ready'}"[: max(0, width - len(model))]
    return colours.accent(model) + (colours.good if snapshot.is_ready else colours.bad)(state)


def _row(colours: Colours, width: int, name: str, text: str, values: Sequence[float | None]) -> str:
    figures = _clip(f"{name:<{LABEL_WIDTH}}{text:<24}", width)
    drawn = bars(values)[-(width - len(figures)) :] if len(figures) < width else ""
    return f"{figures}{colours.good(drawn)}".rstrip()


def _period(snapshot: Snapshot, num_bars: int, *, is_redrawn: bool) -> str:
    seconds = num_bars * snapshot.load["interval_s"]
    way_out = "; Ctrl-C leaves" if is_redrawn else ""
    return f"{escape_controls(snapshot.url)}; bars: the last {seconds} s{way_out}"


def _ms(values: Sequence[float | None]) -> str:
    """Return the newest value that was measured."""
    newest = next((value for value in reversed(values) if value is not None), None)
    return "-" if newest is None else f"{newest:,.0f} ms" if newest >= 10 else f"{newest:.1f} ms"


def _clip(text: str, width: int) -> str:
    return escape_controls(text)[: max(1, width)]
