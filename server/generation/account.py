"""The account of one choice: its tokens and times, reported to the metrics and to the request's record when it ends."""

from engine.types import RequestOutput, Timing
from server.observability.access_log import RequestRecord
from server.observability.metric_families import Outcome
from server.observability.metrics import Metrics


class RequestAccount:
    """Account of one choice, opened when it is received. Callers must call `close`; later calls of it do nothing."""

    def __init__(
        self,
        metrics: Metrics,
        record: RequestRecord,
        *,
        num_prompt_tokens: int,
        arrival_s: float,
        max_tokens: int | None = None,
        num_choices: int | None = None,
    ) -> None:
        """`max_tokens`, `num_choices`: see Metrics.finished."""
        self.num_tokens = 0
        self.num_cached_tokens = 0
        self._metrics = metrics
        self._record = record
        self._max_tokens = max_tokens
        self._num_choices = num_choices
        self._num_prompt_tokens = num_prompt_tokens
        self._arrival_s = arrival_s
        self._first_token_s: float | None = None
        self._last_token_s: float | None = None
        self._timing: Timing | None = None
        self._is_open = True
        metrics.received(1)

    def record_output(self, output: RequestOutput, num_tokens: int, now_s: float) -> None:
        """Record an output. `num_tokens`: all tokens that the choice has generated with it."""
        self.num_cached_tokens = max(self.num_cached_tokens, output.num_cached_tokens)
        self._timing = output.timing or self._timing
        num_new, self.num_tokens = num_tokens - self.num_tokens, num_tokens
        if not num_new:
            return
        if self._last_token_s is None:
            self._first_token_s = now_s
            self._metrics.recent.add_first_token(now_s - self._arrival_s)
        else:
            self._metrics.inter_token((now_s - self._last_token_s) / num_new, num_new)
        self._last_token_s = now_s

    def close(self, outcome: Outcome, now_s: float) -> None:
        """Report the choice's end, with the engine's times; if it reported no times, with those measured here."""
        if not self._is_open:
            return
        self._is_open = False
        measured = Timing(arrival_s=self._arrival_s, first_token_s=self._first_token_s, finished_s=now_s)
        timing = self._timing or measured
        num_tokens, num_cached = self.num_tokens, self.num_cached_tokens
        self._metrics.finished(
            outcome,
            num_prompt_tokens=self._num_prompt_tokens,
            num_generation_tokens=num_tokens,
            num_cached_tokens=num_cached,
            timing=timing,
            max_tokens=self._max_tokens,
            num_choices=self._num_choices,
        )
        is_first = self._num_choices is not None  # of its prompt, whose tokens the log counts once
        self._record.add_choice(
            outcome,
            num_prompt_tokens=self._num_prompt_tokens if is_first else 0,
            num_generation_tokens=num_tokens,
            num_cached_tokens=num_cached if is_first else 0,
            timing=timing,
        )
