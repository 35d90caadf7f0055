"""How long to wait before an engine is started in place of one that died, and when to give up. Sans-IO."""

FIRST_DELAY_S, MAX_DELAY_S = 0.5, 30.0
SERVED_S = 60.0  # an engine that was ready for so long was of use, though nobody asked it for anything
MAX_FAILED_STARTS = 6  # engines in a row that came to nothing; an outside supervisor is to see it then


class RestartPolicy:
    """An engine is replaced at once, the next after 0.5 s, 1 s ... 30 s; behind one that was of use it begins anew."""

    def __init__(self) -> None:
        self._num_deaths = 0
        self._num_useless = 0

    def died(self, *, was_useful: bool, is_explained: bool) -> float | None:
        """Seconds to wait, or None: another one would die too.

        `was_useful`: it gave somebody an output, or was ready for SERVED_S. `is_explained`: a request is known to have
        killed it, which speaks against that request and not against the engine.
        """
        if was_useful:
            self._num_deaths = self._num_useless = 0
        if not was_useful and not is_explained:
            self._num_useless += 1
        if self._num_useless >= MAX_FAILED_STARTS:
            return None
        self._num_deaths += 1
        return 0.0 if self._num_deaths == 1 else min(MAX_DELAY_S, FIRST_DELAY_S * 2 ** min(self._num_deaths - 2, 16))
