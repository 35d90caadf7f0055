"""Requests of a benchmark: prompts and lengths, and when each request is due. The same seed gives the same requests."""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import orjson

LOWEST_ID = 300  # smaller ids are control tokens and bytes
WORDS = (
    *("river", "stone", "light", "under", "many", "small", "house", "green", "after", "water", "bridge", "letter"),
    *("north", "winter", "table", "paper", "morning", "open", "garden", "silver", "quiet", "number", "story", "round"),
)

PromptKind = Literal["tokens", "text"]


class WorkloadError(Exception):
    """An invalid trace, range or option. One line."""


@dataclass(frozen=True)
class Range:
    """Integers from `low` to `high`, both included."""

    low: int
    high: int

    @classmethod
    def parse(cls, text: str) -> "Range":
        """Parse "64" or "16,256". Raises WorkloadError."""
        low, _, high = text.partition(",")
        try:
            parsed = cls(int(low), int(high or low))
        except ValueError:
            raise WorkloadError(f"{text!r} should be a number, or two as in 16,256") from None
        if not 1 <= parsed.low <= parsed.high:
            raise WorkloadError(f"{text!r} should be 1 or more, the lower number first")
        return parsed

    def draw(self, rng: random.Random) -> int:
        """Return a number of the range, each with the same probability."""
        return rng.randint(self.low, self.high)


@dataclass(frozen=True)
class BenchRequest:
    """One request to send."""

    prompt: list[int] | str
    max_tokens: int
    due_s: float = 0.0  # seconds after the start of an open loop


def random_prompt(kind: PromptKind, length: int, vocab_size: int, rng: random.Random) -> list[int] | str:
    """Return `length` random token ids, or a text of `length` random words."""
    if kind == "text":
        return " ".join(rng.choices(WORDS, k=length))
    return [rng.randrange(LOWEST_ID, vocab_size) for _ in range(length)]


def draw_requests(
    kind: PromptKind, prompts: Range, outputs: Range, count: int, vocab_size: int, rng: random.Random
) -> list[BenchRequest]:
    """Return `count` requests with lengths drawn uniformly from both ranges."""
    lengths = [(prompts.draw(rng), outputs.draw(rng)) for _ in range(count)]
    return [
        BenchRequest(random_prompt(kind, num_prompt, vocab_size, rng), num_output) for num_prompt, num_output in lengths
    ]


def poisson_arrivals(rate: float, rng: random.Random) -> Iterator[float]:
    """Yield the arrival times of a Poisson process with `rate` arrivals per second, in seconds from 0, without end."""
    now = 0.0
    while True:
        now += rng.expovariate(rate)
        yield now


def read_trace(path: Path, kind: PromptKind, vocab_size: int, rng: random.Random) -> list[BenchRequest]:
    """Read the requests of a JSONL file: one {"arrival_s", "prompt_tokens", "output_tokens"} per line.

    They are returned in the order of arrival. Raises WorkloadError that names the line.
    """
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise WorkloadError(f"{path}: {error.strerror}") from None
    entries = [_parse_entry(f"{path}:{number}", line) for number, line in enumerate(lines, 1) if line.strip()]
    if not entries:
        raise WorkloadError(f"{path}: the file has no requests")
    return [
        BenchRequest(random_prompt(kind, num_prompt, vocab_size, rng), num_output, due_s)
        for due_s, num_prompt, num_output in sorted(entries)
    ]


def _parse_entry(place: str, line: bytes) -> tuple[float, int, int]:
    try:
        fields = orjson.loads(line)
        due_s, lengths = fields["arrival_s"], (fields["prompt_tokens"], fields["output_tokens"])
    except (orjson.JSONDecodeError, KeyError, TypeError):
        raise WorkloadError(
            f'{place}: should be {{"arrival_s": 0.5, "prompt_tokens": 100, "output_tokens": 20}}'
        ) from None
    if not _is_number(due_s) or due_s < 0 or not all(isinstance(n, int) and n >= 1 for n in lengths):
        raise WorkloadError(f"{place}: arrival_s should be 0 or more, both counts 1 or more")
    return float(due_s), *lengths


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def with_arrivals(requests: Sequence[BenchRequest], rate: float, rng: random.Random) -> list[BenchRequest]:
    """Return the same requests, due at the arrival times of a Poisson process."""
    arrivals = poisson_arrivals(rate, rng)
    return [replace(request, due_s=due_s) for request, due_s in zip(requests, arrivals, strict=False)]
