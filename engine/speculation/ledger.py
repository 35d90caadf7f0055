"""Account of the time that drafts saved and lost, which bounds the loss."""

MAX_LOSS = 0.02  # share of the time of all steps that drafts may lose
KEPT = 0.998  # of the past, for each second step or so: the account covers about the last 500 steps


class Ledger:
    """Balance of saved seconds, against the seconds of all steps. Both fade, so that old gains do not pay for long."""

    def __init__(self, max_loss: float = MAX_LOSS) -> None:
        self._max_loss = max_loss
        self._spent_s = 0.0
        self._saved_s = 0.0

    def record(self, seconds: float, saved_s: float = 0.0) -> None:
        """Record a step and what its drafts saved; a negative number if they lost time."""
        self._spent_s = KEPT * self._spent_s + seconds
        self._saved_s = min(KEPT * self._saved_s + saved_s, self._max_loss * self._spent_s)

    @property
    def allows_drafts(self) -> bool:
        """False while the losses exceed their share."""
        return self._saved_s >= -self._max_loss * self._spent_s
