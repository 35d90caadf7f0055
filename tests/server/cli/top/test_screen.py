"""The lines of `smoe top`: figures of the newest interval, bars of all, clipped to the terminal."""

import re
from typing import Any

import pytest

from server.cli.colours import Colours
from server.cli.top.screen import Snapshot, bars, screen_lines

PLAIN = Colours(is_on=False)
LOAD: dict[str, Any] = {
    "interval_s": 2,
    "prompt_tokens_per_s": [0] * 58 + [10.4, 1500],
    "generated_tokens_per_s": [0] * 58 + [50, 100],
    "running": [0] * 58 + [1, 3],
    "waiting": [0] * 60,
    "kv_usage": [0] * 58 + [0.5, 0.25],
    "step_ms": [None] * 58 + [20.4, None],
    "ttft_p50_ms": [None] * 59 + [3.21],
    "ttft_p99_ms": [None] * 60,
}
EXPERTS = {"layers": [{"layer": 0, "tokens": [3, 1], "share": [0.75, 0.25]}]}


def snapshot(**changed: Any) -> Snapshot:
    return Snapshot(**{"model": "m", "url": "http://h", "is_ready": True, "load": LOAD, "experts": EXPERTS, **changed})


def test_the_figures_are_those_of_the_newest_interval() -> None:
    lines = screen_lines(snapshot(), PLAIN, 120, 40)
    assert lines[0] == "m  ready"
    figures = {line[:12].strip(): line[12:36].strip() for line in lines[3:9]}
    assert figures == {
        "requests": "3 running, 0 waiting",
        "answers": "100 tokens/s",
        "prompts": "1,500 tokens/s",
        "KV cache": "25%",
        "step": "20 ms",
        "first token": "p50 3.2 ms, p99 -",
    }
    assert lines[4].endswith("▄█") and "the last 120 s" in lines[1]
    assert lines[-1].startswith("layer 0") and "expert 0, 75%" in lines[-1]


def test_an_engine_that_does_not_answer_leaves_out_its_experts() -> None:
    lines = screen_lines(snapshot(experts=None, is_ready=False), PLAIN, 120, 40)
    assert lines[0] == "m  not ready" and not [line for line in lines if "expert" in line]


@pytest.mark.parametrize("colours", [PLAIN, Colours(is_on=True)], ids=["plain", "coloured"])
@pytest.mark.parametrize(("width", "height"), [(1, 1), (5, 10), (20, 20), (30, 20), (40, 10), (79, 24), (200, 60)])
def test_the_screen_fits_the_terminal(width: int, height: int, colours: Colours) -> None:
    layers = [{"layer": i, "tokens": [3, 1], "share": [0.75, 0.25]} for i in range(56)]
    load = {**LOAD, "ttft_p50_ms": [1234.0] * 60, "ttft_p99_ms": [123456.0] * 60}
    changed = {"load": load, "experts": {"layers": layers}, "model": "n" * 300, "is_ready": False}
    lines = screen_lines(snapshot(**changed), colours, width, height)
    assert len(lines) <= height
    assert max(len(re.sub("\x1b\\[[0-9;]*m", "", line)) for line in lines) <= width


def test_a_models_name_cannot_control_the_terminal() -> None:
    lines = screen_lines(snapshot(model="a\x1b[2J", url="\x07"), PLAIN, 120, 40)
    assert not set("".join(lines)) & {"\x1b", "\x07"}


@pytest.mark.parametrize(
    ("values", "expected"), [([0, 2, None, 4], " ▄ █"), ([], ""), ([0, 0], "  "), ([0.001, 1], "▁█"), ([7], "█")]
)
def test_the_largest_bar_is_full_and_no_positive_value_is_blank(values: list[float | None], expected: str) -> None:
    assert bars(values) == expected


def test_only_a_screen_that_is_redrawn_says_how_to_leave_it() -> None:
    assert "Ctrl-C leaves" in screen_lines(snapshot(), PLAIN, 120, 40)[1]
    assert not [line for line in screen_lines(snapshot(), PLAIN, 120, 40, is_redrawn=False) if "Ctrl-C" in line]
