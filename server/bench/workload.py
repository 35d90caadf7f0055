"""Requests of a benchmark: prompts and lengths, and when each request is due. The same seed gives the same requests."""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from server.bench.trace_file import TraceError, read_trace_file

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
    """Return the requests of a trace (server/bench/trace_file.py) with random prompts. Raises WorkloadError."""
    try:
        traced = read_trace_file(path)
    except TraceError as error:
        raise WorkloadError(str(error)) from None
    return [
        BenchRequest(
            random_prompt(kind, request.num_prompt_tokens, vocab_size, rng),
            request.num_output_tokens,
            request.arrival_s,
        )
        for request in traced
    ]


def with_arrivals(requests: Sequence[BenchRequest], rate: float, rng: random.Random) -> list[BenchRequest]:
    """Return the same requests, due at the arrival times of a Poisson process."""
    arrivals = poisson_arrivals(rate, rng)
    return [replace(request, due_s=due_s) for request, due_s in zip(requests, arrivals, strict=False)]
