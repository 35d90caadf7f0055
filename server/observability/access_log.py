"""Log one line per finished choice. The log never contains prompt text or generated text."""

import logging
import time
from collections.abc import Callable

from engine.types import Timing
from server.observability.metric_families import Outcome

logger = logging.getLogger("smoe.access")


class AccessLog:
    """Writes the line of each finished choice, with the same numbers that the metrics count."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """`clock` is the clock of `Timing`."""
        self._clock = clock

    def finished(
        self,
        request_id: str,
        outcome: Outcome,
        *,
        num_prompt_tokens: int = 0,
        num_generation_tokens: int = 0,
        num_cached_tokens: int = 0,
        timing: Timing | None = None,
        user: str | None = None,
    ) -> None:
        """Log the end of one choice. Times are rounded to milliseconds; events that never happened are omitted."""
        fields: dict[str, str | int | float] = {
            "request_id": request_id,
            "outcome": outcome,
            "prompt_tokens": num_prompt_tokens,
            "generation_tokens": num_generation_tokens,
            "cached_tokens": num_cached_tokens,
        }
        if user is not None:
            fields["user"] = user
        if timing is not None:
            fields |= self._seconds(timing)
        logger.info("request finished", extra={"fields": fields})

    def _seconds(self, timing: Timing) -> dict[str, float]:
        finished_s = self._clock() if timing.finished_s is None else timing.finished_s
        times_s = {"queue_s": timing.first_scheduled_s, "ttft_s": timing.first_token_s, "total_s": finished_s}
        return {name: round(time_s - timing.arrival_s, 3) for name, time_s in times_s.items() if time_s is not None}
