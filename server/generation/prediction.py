"""The predicted text of a request: its tokens for the engine, and how many of them the reply has."""

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Sequence
from itertools import pairwise

from server.errors import invalid_value
from server.generation.jobs import JobBuilder


async def encode_prediction(builder: JobBuilder, text: str) -> list[int]:
    """Return the token ids of a predicted text. Raises ApiError 400 if it is certainly longer than any reply."""
    tokenizer, limit = builder.texts.tokenizer, builder.ready.max_model_len

    def encode() -> list[int]:
        if tokenizer.min_num_tokens(text) > limit:
            raise invalid_value(
                f"'prediction' is longer than a reply of this model can be: {limit} tokens.", "prediction"
            )
        return tokenizer.encode(text, add_special_tokens=False)[:limit]

    return await builder.state.heavy_work.run(encode, size=len(text), tenant=builder.tenant)


class PredictionTally:
    """Counts the tokens of a prediction that one completion has, in the same order.

    A function of both texts alone: neither drafts nor load change it. While the completion follows the prediction, each
    token counts. After one that differs it follows again from the next place on that has its last two tokens.
    Prediction 1 2 3 4 5 6 and completion 1 2 9 5 6: four tokens count.
    """

    def __init__(self, prediction: Sequence[int]) -> None:
        self.num_accepted = 0
        self._prediction = prediction
        self._places: defaultdict[tuple[int, int], list[int]] = defaultdict(
            list
        )  # of each pair's first token, ascending
        for place, pair in enumerate(pairwise(prediction)):
            self._places[pair].append(place)
        self._next = 0  # place in the prediction that the next token is compared with
        self._last: int | None = None
        self._is_last_counted = False

    @property
    def num_rejected(self) -> int:
        """Tokens of the prediction that the completion does not have."""
        return len(self._prediction) - self.num_accepted

    def push(self, token_ids: Iterable[int]) -> None:
        """Add generated tokens."""
        for token_id in token_ids:
            self._push(token_id)

    def _push(self, token_id: int) -> None:
        is_right = self._next < len(self._prediction) and self._prediction[self._next] == token_id
        if is_right:
            self.num_accepted += 1
            self._next += 1
        elif self._last is not None:
            places = self._places.get((self._last, token_id), [])
            index = bisect_left(places, self._next)
            if index < len(places):
                self.num_accepted += 1 if self._is_last_counted else 2
                self._next = places[index] + 2
                is_right = True
        self._last, self._is_last_counted = token_id, is_right
