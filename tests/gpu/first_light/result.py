"""Result of a stage: rows of figures, as JSON and as a table. No torch."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

Row = dict[str, Any]


@dataclass
class Result:
    """Outcome of one stage."""

    stage: str
    outcome: str  # ok, failed, missing (a package or program), error, timeout
    seconds: float = 0.0
    detail: str = ""  # one line: what failed or is missing
    rows: list[Row] = field(default_factory=list)

    def as_fields(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Options:
    """Options of a stage.

    `tiny`: small shapes, so that it also runs under Triton's interpreter. `early`: kernels may start early.
    """

    device: str = "cuda"
    tiny: bool = False
    early: bool = True


class MissingPartError(Exception):
    """The machine lacks what a stage needs. Its name."""


Stage = Callable[[Options], list[Row]]


def table(results: Sequence[Result]) -> str:
    """Return a line per stage, then the rows of each stage."""
    lines = [f"{'stage':<12} {'outcome':<8} {'seconds':>8}  detail"]
    lines += [f"{r.stage:<12} {r.outcome:<8} {r.seconds:>8.1f}  {r.detail}" for r in results]
    for result in results:
        if result.rows:
            lines += ["", result.stage, *map(_line, result.rows)]
    return "\n".join(lines)


def _line(row: Row) -> str:
    return "  " + "  ".join(f"{name} {_text(value)}" for name, value in row.items())


def _text(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def failures(rows: Sequence[Row]) -> list[str]:
    """Return the cases of the rows whose `ok` is false."""
    return [str(row.get("case", row)) for row in rows if row.get("ok") is False]
