"""Delays before the next engine process, and the number of failures after which there is none. Sans-IO."""

FIRST_DELAY_S, MAX_DELAY_S = 0.5, 30.0
SERVED_S = 60.0  # a process that was ready for this long has served, even if no request came
MAX_FAILED_STARTS = 6  # processes in a row that failed; after that an outside supervisor must see the exit


class RestartPolicy:
    """Restart delays: none, then 0.5 s, 1 s ... 30 s. They start over after a process that has served."""

    def __init__(self) -> None:
        self._num_exits = 0
        self._num_failed = 0

    def next_delay_s(self, *, has_served: bool, has_culprit: bool) -> float | None:
        """Return the seconds to wait after a process has exited, or None to give up.

        `has_served`: it gave an output to any request, or was ready for SERVED_S. `has_culprit`: a known request
        crashed it, so that the exit does not count as a failure of the engine.
        """
        if has_served:
            self._num_exits = self._num_failed = 0
        if not has_served and not has_culprit:
            self._num_failed += 1
        if self._num_failed >= MAX_FAILED_STARTS:
            return None
        self._num_exits += 1
        return 0.0 if self._num_exits == 1 else min(MAX_DELAY_S, FIRST_DELAY_S * 2 ** min(self._num_exits - 2, 16))
