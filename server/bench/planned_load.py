"""The load that `smoe plan` plans for: drawn requests, or a trace, shared out among a number of servers."""

import random
from collections.abc import Sequence
from typing import Protocol

from engine.planning.replicas import ALONE
from engine.planning.virtual_engine import Arrival
from server.bench.trace_file import TracedRequest
from server.bench.workload import Range, poisson_arrivals

MIN_REQUESTS, MAX_REQUESTS = 400, 10_000  # of one engine in a run: the 99th percentile leaves out at least four
MIN_RUN = 20  # times the limit of the first token: then an engine with 5 % too much load is seen to fall behind
NUM_ALONE = 20
ALONE_S = 1e9  # between two requests that never meet


class PlannedLoad(Protocol):
    """A load."""

    def share(self, num_servers: int) -> list[Arrival]:
        """Return the requests of one of `num_servers` servers; with ALONE, some that never meet."""


class DrawnLoad:
    """Poisson arrivals with lengths from two ranges, each length with the same probability."""

    def __init__(self, rate: float, prompts: Range, outputs: Range, ttft_s: float) -> None:
        """`ttft_s`: limit of the first token, by which the length of a run is chosen."""
        self._rate = rate
        self._prompts = prompts
        self._outputs = outputs
        self._ttft_s = ttft_s

    def share(self, num_servers: int) -> list[Arrival]:
        """Return new requests at a server's share of the rate. The lengths are the same for every number."""
        rate = self._rate / num_servers
        count = min(MAX_REQUESTS, max(MIN_REQUESTS, round(MIN_RUN * self._ttft_s * rate)))
        lengths, times = random.Random(0), poisson_arrivals(rate, random.Random(1))
        return [
            Arrival(next(times), self._prompts.draw(lengths), self._outputs.draw(lengths))
            for _ in range(NUM_ALONE if num_servers == ALONE else count)
        ]


class TracedLoad:
    """The requests of a trace, dealt out in turns."""

    def __init__(self, requests: Sequence[TracedRequest], rate: float | None = None) -> None:
        """`requests`: by arrival. `rate`: requests per second, to which the trace is slowed down or sped up."""
        span_s = requests[-1].arrival_s - requests[0].arrival_s
        own_rate = (len(requests) - 1) / span_s if span_s else float(len(requests))
        factor = 1.0 if rate is None else own_rate / rate
        self._arrivals = [Arrival(r.arrival_s * factor, r.num_prompt_tokens, r.num_output_tokens) for r in requests]

    def share(self, num_servers: int) -> list[Arrival]:
        """Return every `num_servers`-th request; with ALONE, some of all of the trace, far apart."""
        if num_servers != ALONE:
            return self._arrivals[::num_servers]
        some = self._arrivals[:: max(1, len(self._arrivals) // NUM_ALONE)]
        return [
            Arrival(number * ALONE_S, each.num_prompt_tokens, each.num_output_tokens)
            for number, each in enumerate(some)
        ]
