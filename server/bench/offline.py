"""`smoe bench kernels` and `smoe bench engine`: starts a process with torch that measures, and prints its figures."""

import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args, get_type_hints

import msgspec

from engine.bench.task import Task
from engine.config import EngineConfig
from server.settings.settings import flag_name
from server.settings.sources import engine_environment

CONTEXTS = {"kernels": [256, 1024, 4096], "engine": [256]}
ROWS = {
    ("kernels", "cpu"): [1, 4, 16, 64, 256],
    ("kernels", "cuda"): [1, 8, 64, 256, 2048],
    ("engine", "cpu"): [1, 4, 8, 16, 64],
    ("engine", "cuda"): [1, 4, 8, 16, 64, 256],
}
INVALID = 2  # exit code of a measuring process that has said in one line what is wrong
PREFILLS = [128, 512, 2048]
PRESET = {"cpu": "bench-400m", "cuda": "mixtral-8x7b"}


class BenchError(Exception):
    """Invalid options, or a measurement that failed. One line."""


def parse_counts(flag: str, text: str) -> list[int]:
    """Parse "1,4,16". Raises BenchError that names the flag."""
    try:
        values = [int(part) for part in text.split(",")]
    except ValueError:
        raise BenchError(f"{flag} {text}: should be numbers such as 1,4,16") from None
    if min(values) < 1:
        raise BenchError(f"{flag} {text}: each should be 1 or more")
    return values


def make_task(
    kind: Literal["kernels", "engine"],
    settings: Mapping[str, str | bool],
    preset: str | None,
    rows: Sequence[int] | None,
    contexts: Sequence[int] | None,
    prefills: Sequence[int] | None,
) -> Task:
    """Return the task for the measuring process. `settings`: fields of EngineConfig, as text. Raises BenchError."""
    given = {name: _number_or_text(value) for name, value in settings.items()}
    device = "cuda" if given["device"] == "cuda" else "cpu"
    task = {
        "kind": kind,
        "engine": {"model": "", "enable_prefix_caching": False, "speculation": "off", **given},
        "preset": preset or PRESET[device],
        "rows": rows or ROWS[kind, device],
        "contexts": contexts or CONTEXTS[kind],
        "prefills": prefills or PREFILLS,
    }
    try:
        return msgspec.convert(task, Task)
    except msgspec.ValidationError as error:
        raise BenchError(_fault(str(error), task)) from None


def _fault(message: str, task: Mapping[str, Any]) -> str:
    """Return msgspec's "Invalid enum value 'x' - at `$.preset`" as "--preset x: should be mixtral-8x7b or tiny"."""
    path = message.rpartition("`$.")[2].rstrip("`").split(".")
    struct, values = (EngineConfig, task["engine"]) if path[0] == "engine" else (Task, task)
    name = path[-1]
    choices = get_args(get_type_hints(struct)[name]) if name in struct.__struct_fields__ else ()
    words = [choice for choice in choices if isinstance(choice, str)]
    expected = f"should be {', '.join(words[:-1])} or {words[-1]}" if len(words) > 1 else "should be a number"
    return f"{flag_name(name)} {values.get(name)}: {expected}"


def _number_or_text(value: str | bool) -> int | str:
    return int(value) if isinstance(value, str) and value.isdecimal() else value


def measure(task: Task) -> dict[str, Any]:
    """Run the measuring process and return its figures. It writes its progress to standard error. Raises BenchError."""
    command = [sys.executable, "-m", "engine.bench", msgspec.json.encode(task).decode()]
    result = subprocess.run(command, stdout=subprocess.PIPE, check=False, env=engine_environment())
    if result.returncode == INVALID:
        sys.exit(INVALID)
    if result.returncode:
        raise BenchError(f"the measurement ended with exit code {result.returncode}")
    figures = msgspec.json.decode(result.stdout)
    assert isinstance(figures, dict)
    return figures


def table(figures: Mapping[str, Any]) -> str:
    """Return a table for the terminal: the limits, then a line per kernel or step."""
    limits = figures["roofline"]
    peaks = ", ".join(f"{name} {peak / 1e9:,.0f} Gop/s" for name, peak in limits["operations_per_s"].items())
    head = [
        f"{figures['model']}, {figures['numerics']}, quantization {figures['quantization']}",
        f"measured limits: memory {limits['bytes_per_s'] / 1e9:.1f} GB/s, {peaks}",
        f"{'':<10}{'rows':>6}{'context':>9}{'ms':>10}{'tokens/s':>11}{'GB/s':>8}{'Gop/s':>9}{'of limit':>10}",
    ]
    return "\n".join([*head, *map(_row, figures.get("kernels") or figures["steps"])])


def _row(figures: Mapping[str, Any]) -> str:
    name, rows = figures.get("kernel") or figures["kind"], figures.get("rows") or figures["batch"]
    tokens = f"{figures['tokens_per_s']:,.0f}" if "tokens_per_s" in figures else ""
    return (
        f"{name:<10}{rows:>6}{figures['context'] or '':>9}{1e3 * figures['seconds']:>10.3f}{tokens:>11}"
        f"{figures['gigabytes_per_s']:>8.1f}{figures['gigaops_per_s']:>9.0f}{figures['share']:>10.0%}"
    )
