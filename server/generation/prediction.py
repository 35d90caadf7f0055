"""The predicted text of a request: its tokens, and how many of them a reply has."""

from array import array
from bisect import bisect_left
from collections.abc import Iterable
from itertools import pairwise


class PredictedTokens:
    """Token ids of a predicted text, and where each pair of them is. All choices of a request share it.

    Eight bytes a token. The index takes 0.3 us a token, in which the interpreter does nothing else.
    """

    def __init__(self, token_ids: list[int]) -> None:
        self.token_ids = token_ids
        self._num_values = max(self.token_ids, default=0) + 1  # of one token
        keys = (self._key(pair, place) for place, pair in enumerate(pairwise(self.token_ids)))
        self._keys = array("q", sorted(keys))  # by pair, then by place

    def next_place(self, pair: tuple[int, int], start: int) -> int | None:
        """Return the first place from `start` on whose token and the next one are this pair; None if there is none."""
        if max(pair) >= self._num_values:
            return None
        first = self._key(pair, 0)
        index = bisect_left(self._keys, first + start)
        place = self._keys[index] - first if index < len(self._keys) else len(self.token_ids)
        return place if place < len(self.token_ids) else None

    def _key(self, pair: tuple[int, int], place: int) -> int:
        """Return one number for all three, which fits into 64 bits for any vocabulary and context."""
        return (pair[0] * self._num_values + pair[1]) * len(self.token_ids) + place


NO_PREDICTION = PredictedTokens([])


class PredictionTally:
    """Counts the tokens of a prediction that one completion has, in the same order.

    A function of both texts alone: neither drafts nor load change it. While the completion follows the prediction, each
    token counts. After one that differs it follows again from the next place on that has its last two tokens.
    Prediction 1 2 3 4 5 6 and completion 1 2 9 5 6: four tokens count.
    """

    def __init__(self, prediction: PredictedTokens) -> None:
        self.num_accepted = 0
        self._prediction = prediction
        self._next = 0  # place in the prediction that the next token is compared with
        self._last: int | None = None
        self._is_last_counted = False

    @property
    def num_rejected(self) -> int:
        """Tokens of the prediction that the completion does not have."""
        return len(self._prediction.token_ids) - self.num_accepted

    def push(self, token_ids: Iterable[int]) -> None:
        """Add generated tokens."""
        for token_id in token_ids:
            self._push(token_id)

    def _push(self, token_id: int) -> None:
        predicted = self._prediction.token_ids
        is_right = self._next < len(predicted) and predicted[self._next] == token_id
        if is_right:
            self.num_accepted += 1
            self._next += 1
        elif self._last is not None:
            place = self._prediction.next_place((self._last, token_id), self._next)
            if place is not None:
                self.num_accepted += 1 if self._is_last_counted else 2
                self._next = place + 2
                is_right = True
        self._last, self._is_last_counted = token_id, is_right
