"""One line per finished request. No prompt text and no generated text ever reaches it."""

import logging
import time
from collections.abc import Callable

from engine.types import Timing
from server.observability.metric_families import Outcome

logger = logging.getLogger("smoe.access")


class AccessLog:
    """Writes the line that a finished choice gets. The numbers are those that the metrics count."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """`clock` is the one `Timing` was taken from."""
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
        """One choice of the request ended. Seconds are rounded to the millisecond; what never happened is left out."""
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
        moments = {"queue_s": timing.first_scheduled_s, "ttft_s": timing.first_token_s, "total_s": finished_s}
        return {name: round(moment - timing.arrival_s, 3) for name, moment in moments.items() if moment is not None}
