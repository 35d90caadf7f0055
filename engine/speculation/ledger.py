"""Account of the time that drafts saved and lost, which bounds the loss."""

MAX_LOSS = 0.01  # share of the time of all steps that drafts may lose
KEPT = 0.998  # of the past, for each second step or so: the account covers about the last 500 steps
FIRST_STEPS = 300  # that the account begins with, so that the first guesses may fail
MIN_PAUSE, MAX_PAUSE = 32, 1024  # steps without drafts after the loss was too large, the first and the longest time


class Ledger:
    """Balance of saved seconds, against the seconds of all steps. Both fade, so that old gains do not pay for long.

    A balance below its bound begins a pause, each twice as long as the one before, until drafts save time again.
    """

    def __init__(self, max_loss: float = MAX_LOSS) -> None:
        self._max_loss = max_loss
        self._spent_s = 0.0
        self._saved_s = 0.0
        self._pause = MIN_PAUSE  # steps of the next one
        self._num_left = 0  # steps of the present one
        self._num_interrupted = 0  # steps that were left of one when a new text came

    def record(self, seconds: float, saved_s: float = 0.0) -> None:
        """Record a step and what its drafts saved; a negative number if they lost time."""
        self._spent_s = KEPT * (self._spent_s or FIRST_STEPS * seconds) + seconds
        bound_s = self._max_loss * self._spent_s
        self._saved_s = min(KEPT * self._saved_s + saved_s, bound_s)
        if self._num_left:
            self._rest(1)
        elif self._saved_s > 0:
            self._pause, self._num_interrupted = MIN_PAUSE, 0
        elif self._saved_s < -bound_s and self._num_interrupted:
            self._num_left, self._num_interrupted = self._num_interrupted, 0
        elif self._saved_s < -bound_s:
            self._num_left, self._pause = self._pause, min(2 * self._pause, MAX_PAUSE)

    def skip(self, num_steps: int, step_s: float) -> None:
        """Record so many steps of a pause at once, each of about so many seconds."""
        kept = KEPT**num_steps
        self._spent_s = kept * self._spent_s + step_s * (1 - kept) / (1 - KEPT)
        self._saved_s *= kept
        self._rest(num_steps)

    def _rest(self, num_steps: int) -> None:
        """Shorten the pause. Behind a whole one a quarter of the bound may be lost, so that drafts get another try."""
        before, self._num_left = self._num_left, max(0, self._num_left - num_steps)
        if before and not self._num_left:
            self._saved_s = max(self._saved_s, -0.75 * self._max_loss * self._spent_s)

    def end_pause(self) -> None:
        """Allow drafts for a new text if the loss is within its bound again. If they save nothing, the pause goes
        on."""
        if self._saved_s >= -self._max_loss * self._spent_s:
            self._num_left, self._num_interrupted = 0, self._num_left or self._num_interrupted

    @property
    def num_left(self) -> int:
        """Steps of the present pause; 0: drafts are allowed."""
        return self._num_left

    @property
    def allows_drafts(self) -> bool:
        """False in a pause."""
        return not self._num_left
