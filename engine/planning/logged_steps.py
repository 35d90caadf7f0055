"""The lines of a step log (engine/step_log.py), and what they say about a single client's requests."""

from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

import msgspec

from engine.planning.step_shape import StepShape
from engine.planning.step_time_model import MeasurementError


class LoggedRequest(msgspec.Struct, frozen=True):
    """A request when the engine received it."""

    arrival_s: float  # time.monotonic() when it reached the server
    prompt_tokens: int
    max_tokens: int


class LoggedStep(msgspec.Struct, frozen=True):
    """A step of a running engine. While requests are there, a step begins where the one before it ends."""

    begun_s: float  # time.monotonic(), before the engine looked for new requests
    seconds: float  # until its outputs were sent
    shape: StepShape
    added: list[LoggedRequest] = []  # received since the step before


def read_step_log(path: Path) -> list[LoggedStep]:
    """Return the steps of a log without those that were written only in part, as on a full disk, after each of which a
    new server has begun. Raises MeasurementError and OSError."""
    *lines, rest = path.read_bytes().split(b"\n")
    steps = [step for step in map(_step_of, lines) if step is not None]
    if 2 * len(steps) < len(lines) or (rest and not lines):
        raise MeasurementError("is not a step log")
    return steps


def _step_of(line: bytes) -> LoggedStep | None:
    with suppress(msgspec.DecodeError):
        return msgspec.json.decode(line, type=LoggedStep)
    return None


def first_token_s(steps: Iterable[LoggedStep]) -> Iterator[float]:
    """Yield for each request the seconds of its steps up to the first token, if no two requests ran at once."""
    begun_s: float | None = None
    for step in steps:
        if step.added:
            begun_s = step.begun_s
        if begun_s is not None and step.shape.num_logits:
            yield step.begun_s + step.seconds - begun_s
            begun_s = None
