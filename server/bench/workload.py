"""What a benchmark asks for: requests of given lengths, and when each is due. Seeded: the same work each time."""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import orjson

LOWEST_ID = 300  # below it stand control tokens and bytes
WORDS = (
    *("river", "stone", "light", "under", "many", "small", "house", "green", "after", "water", "bridge", "letter"),
    *("north", "winter", "table", "paper", "morning", "open", "garden", "silver", "quiet", "number", "story", "round"),
)

PromptKind = Literal["tokens", "text"]


class WorkError(Exception):
    """A trace or a range that cannot be used. One line."""


@dataclass(frozen=True)
class Range:
    """Whole numbers from `low` to `high`, both included."""

    low: int
    high: int

    @classmethod
    def parse(cls, text: str) -> "Range":
        """From "64" or "16,256". Raises WorkError."""
        low, _, high = text.partition(",")
        try:
            parsed = cls(int(low), int(high or low))
        except ValueError:
            raise WorkError(f"{text!r} should be a number, or two as in 16,256") from None
        if not 1 <= parsed.low <= parsed.high:
            raise WorkError(f"{text!r} should be 1 or more, the lower number first")
        return parsed

    def draw(self, rng: random.Random) -> int:
        return rng.randint(self.low, self.high)


@dataclass(frozen=True)
class BenchRequest:
    """One request to make."""

    prompt: list[int] | str
    max_tokens: int
    due_s: float = 0.0  # after the run's start; a closed loop does not look at it


def prompt(kind: PromptKind, length: int, vocab_size: int, rng: random.Random) -> list[int] | str:
    """`length` random token ids, or as many random words."""
    if kind == "text":
        return " ".join(rng.choices(WORDS, k=length))
    return [rng.randrange(LOWEST_ID, vocab_size) for _ in range(length)]


def draw_work(
    kind: PromptKind, prompts: Range, outputs: Range, count: int, vocab_size: int, rng: random.Random
) -> list[BenchRequest]:
    """`count` requests with lengths drawn evenly from both ranges."""
    lengths = [(prompts.draw(rng), outputs.draw(rng)) for _ in range(count)]
    return [BenchRequest(prompt(kind, num_prompt, vocab_size, rng), num_output) for num_prompt, num_output in lengths]


def poisson_arrivals(rate: float, rng: random.Random) -> Iterator[float]:
    """Seconds of a Poisson process with `rate` arrivals per second, from 0 on and without end."""
    now = 0.0
    while True:
        now += rng.expovariate(rate)
        yield now


def read_trace(path: Path, kind: PromptKind, vocab_size: int, rng: random.Random) -> list[BenchRequest]:
    """The requests of a JSONL file, in order of arrival: one {"arrival_s", "prompt_tokens", "output_tokens"} per line.

    Raises WorkError that names the line.
    """
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise WorkError(f"{path}: {error.strerror}") from None
    entries = [_entry(f"{path}:{number}", line) for number, line in enumerate(lines, 1) if line.strip()]
    if not entries:
        raise WorkError(f"{path}: no requests in it")
    return [
        BenchRequest(prompt(kind, num_prompt, vocab_size, rng), num_output, due_s)
        for due_s, num_prompt, num_output in sorted(entries)
    ]


def _entry(place: str, line: bytes) -> tuple[float, int, int]:
    try:
        fields = orjson.loads(line)
        due_s, lengths = fields["arrival_s"], (fields["prompt_tokens"], fields["output_tokens"])
    except (orjson.JSONDecodeError, KeyError, TypeError):
        raise WorkError(f'{place}: should be {{"arrival_s": 0.5, "prompt_tokens": 100, "output_tokens": 20}}') from None
    if not _is_number(due_s) or due_s < 0 or not all(isinstance(n, int) and n >= 1 for n in lengths):
        raise WorkError(f"{place}: a time of 0 or more and two counts of 1 or more are needed")
    return float(due_s), *lengths


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def with_arrivals(work: Sequence[BenchRequest], rate: float, rng: random.Random) -> list[BenchRequest]:
    """The same requests, due as a Poisson process has it."""
    return [
        BenchRequest(w.prompt, w.max_tokens, due_s) for w, due_s in zip(work, poisson_arrivals(rate, rng), strict=False)
    ]
