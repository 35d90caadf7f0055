"""Log one line per HTTP request that generates or is answered with an error, when its response ends.

The log never contains prompt text or generated text.
"""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from engine.types import Timing
from server.observability.metric_families import Outcome

logger = logging.getLogger("smoe.access")
MAX_PATH_CHARS = 128
MAX_METHOD_CHARS = 32
MIN_ERROR_STATUS = 400


@dataclass
class RequestRecord:
    """Content of the log's line about one HTTP request. Its choices are added as they end."""

    request_id: str
    method: str = ""
    path: str = ""
    client: str | None = None  # address
    route: str | None = None  # template of the path; None if no route has it
    trace_headers: dict[str, str] = field(default_factory=dict)  # the client's traceparent and tracestate
    started_s: float = field(default_factory=time.monotonic)
    user: str | None = None  # the end user that the client names
    outcomes: list[Outcome] = field(default_factory=list)  # of the choices
    num_prompt_tokens: int = 0
    num_generation_tokens: int = 0
    num_cached_tokens: int = 0
    timings: list[Timing] = field(default_factory=list)

    def add_choice(
        self,
        outcome: Outcome,
        *,
        num_prompt_tokens: int,
        num_generation_tokens: int,
        num_cached_tokens: int,
        timing: Timing | None,
    ) -> None:
        """Add a choice that has ended. Choices of the same prompt give its tokens once."""
        self.outcomes.append(outcome)
        self.num_prompt_tokens += num_prompt_tokens
        self.num_generation_tokens += num_generation_tokens
        self.num_cached_tokens += num_cached_tokens
        if timing is not None:
            self.timings.append(timing)

    def figures(self, now_s: float) -> dict[str, str | int | float]:
        """Return outcome, tokens and times of the choices; their outcomes are joined if they differ.

        Times are rounded to milliseconds; events that never happened are left out.
        """
        fields: dict[str, str | int | float] = {"outcome": "+".join(dict.fromkeys(self.outcomes))}
        if len(self.outcomes) > 1:
            fields["choices"] = len(self.outcomes)
        fields |= {
            "prompt_tokens": self.num_prompt_tokens,
            "generation_tokens": self.num_generation_tokens,
            "cached_tokens": self.num_cached_tokens,
        }
        return fields | self._seconds(now_s)

    def _seconds(self, now_s: float) -> dict[str, float]:
        """The first choice to be scheduled, the first token of all, the last end, and the pace in between."""
        if not self.timings:
            return {}
        arrival_s = min(timing.arrival_s for timing in self.timings)
        scheduled = [timing.first_scheduled_s for timing in self.timings if timing.first_scheduled_s is not None]
        tokens = [timing.first_token_s for timing in self.timings if timing.first_token_s is not None]
        end_s = max(now_s if timing.finished_s is None else timing.finished_s for timing in self.timings)
        times_s = {"queue_s": min(scheduled, default=None), "ttft_s": min(tokens, default=None), "total_s": end_s}
        fields = {name: round(time_s - arrival_s, 3) for name, time_s in times_s.items() if time_s is not None}
        if tokens and end_s > min(tokens) and self.num_generation_tokens > len(tokens):
            num_later = self.num_generation_tokens - len(tokens)
            fields["tokens_per_s"] = round(num_later / (end_s - min(tokens)), 1)
        return fields


class RequestListener(Protocol):
    """Receives the records of the requests that the log shows: server/observability/tracing.py."""

    def request_ended(self, record: RequestRecord, status: int | None) -> None: ...
    def close(self) -> None: ...


class AccessLog:
    """Writes the line of each HTTP request."""

    def __init__(self, clock: Callable[[], float] = time.monotonic, listener: RequestListener | None = None) -> None:
        """`clock` is the clock of `Timing`. `listener` receives each request that generated or failed."""
        self._clock = clock
        self._listener = listener

    def request_ended(self, record: RequestRecord, status: int | None, *, is_probe: bool = False) -> None:
        """Log a request whose response has ended. `status`: None if its client left before the response began.

        Requests that generated are logged at level info, and so are errors, as "rejected"; all others, and errors of
        health probes, at level debug.
        """
        is_error = status is not None and status >= MIN_ERROR_STATUS
        fields: dict[str, str | int | float] = {
            "request_id": record.request_id,
            "method": record.method[:MAX_METHOD_CHARS],
        }
        fields["path"] = record.path[:MAX_PATH_CHARS]
        if status is not None:
            fields["status"] = status
        if record.client is not None:
            fields["client"] = record.client
        if record.outcomes:
            fields |= record.figures(self._clock())
        elif is_error:
            fields["outcome"] = "rejected"
        if record.user is not None:
            fields["user"] = record.user
        is_shown = bool(record.outcomes) or (is_error and not is_probe)
        logger.log(logging.INFO if is_shown else logging.DEBUG, "request finished", extra={"fields": fields})
        if is_shown and self._listener is not None:
            self._listener.request_ended(record, status)

    def connection_rejected(self, status: int) -> None:
        """Log a request whose head was not valid HTTP, or did not arrive in time: only its status is known."""
        fields = {"status": status, "outcome": "rejected"}
        logger.info("request finished", extra={"fields": fields})
