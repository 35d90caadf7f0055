"""Constraints of one running request as arrays, prepared once when its row is filled.

Letters: W bad words, P ids of the longest bad word without its last one, V vocabulary.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from engine.token_constraints import NO_CONSTRAINTS, TokenConstraints
from engine.types import SamplingParams

Int32s = NDArray[np.int32]
Float32s = NDArray[np.float32]
Mask = NDArray[np.uint32]

FORBIDDEN = float("-inf")
ANY_TOKEN, NO_TOKEN = -1, -2  # padding of bad words, and of texts that are shorter than they


class BadWords:
    """Finds the tokens that would complete a bad word."""

    def __init__(self, words: Sequence[Int32s]) -> None:
        self.num_before = max((len(word) - 1 for word in words), default=0)  # P
        self._last = np.array([word[-1] for word in words], dtype=np.int32)  # [W]
        self._before = np.full((len(words), self.num_before), ANY_TOKEN, dtype=np.int32)  # [W, P], aligned at the end
        for row, word in zip(self._before, words, strict=True):
            row[self.num_before - len(word) + 1 :] = word[:-1]

    def forbidden(self, generated: Sequence[int]) -> Int32s:
        """Return the last id of each word whose other ids were just generated.

        After 5 6, the words (5, 6, 7), (6, 8) and (9,) give 7, 8 and 9.
        """
        if not self.num_before:
            return self._last
        tail = generated[-self.num_before :]
        padded = np.array([NO_TOKEN] * (self.num_before - len(tail)) + list(tail), dtype=np.int32)  # [P]
        forbidden: Int32s = self._last[((self._before == padded) | (self._before == ANY_TOKEN)).all(axis=1)]
        return forbidden


class RowConstraints:
    """Biases and mask of one request. Ids outside the vocabulary have no effect."""

    def __init__(self, params: SamplingParams, vocab_size: int) -> None:
        packed = params.constraints
        ids, values = np.frombuffer(packed.bias_ids, np.int32), np.frombuffer(packed.bias_values, np.float32)
        known = _in_vocabulary(ids, vocab_size)
        self._bias_ids, self._bias_values = ids[known], values[known]
        stop_ids = np.array(params.stop_token_ids, dtype=np.int64)
        self._stop_ids = stop_ids[_in_vocabulary(stop_ids, vocab_size)].astype(np.int32)
        self.min_tokens = params.min_tokens  # generated tokens from which on an end token is allowed
        self._words = BadWords(_words(packed, vocab_size))
        self.mask = None if packed.allowed_ids is None else _pack_bits(packed.allowed_ids, vocab_size)
        self.is_empty = packed == NO_CONSTRAINTS and not params.min_tokens  # a grammar may be the only constraint

    @property
    def num_before(self) -> int:
        """Number of generated tokens, the last ones, that the biases depend on."""
        return self._words.num_before

    @property
    def has_long_words(self) -> bool:
        """True if the biases depend on the generated tokens. Else they depend only on whether there are `min_tokens`
        of them."""
        return bool(self.num_before)

    def biases(self, generated: Sequence[int], num_generated: int, eos_ids: Int32s) -> tuple[Int32s, Float32s]:
        """Return token ids and the bias of each, for the token after `generated`, of which the last
        `num_before` count.

        `num_generated` counts tokens that are in flight too, which `generated` does not have yet.
        """
        forbidden = [self._words.forbidden(generated)]
        if num_generated < self.min_tokens:
            forbidden += [eos_ids, self._stop_ids]
        ids = np.concatenate([self._bias_ids, *forbidden])
        values = np.full(len(ids), FORBIDDEN, dtype=np.float32)
        values[: len(self._bias_values)] = self._bias_values
        return ids, values


def _words(packed: TokenConstraints, vocab_size: int) -> list[Int32s]:
    ids = np.frombuffer(packed.bad_word_ids, np.int32)
    ends = np.frombuffer(packed.bad_word_lengths, np.int32).cumsum()
    words = np.split(ids, ends[:-1]) if len(ends) else []
    return [word for word in words if 0 <= word[-1] < vocab_size]


def _in_vocabulary(ids: NDArray[np.integer], vocab_size: int) -> NDArray[np.bool_]:
    return (ids >= 0) & (ids < vocab_size)


def _pack_bits(allowed_ids: bytes, vocab_size: int) -> Mask:
    """Return ceil(V / 32) words: bit i % 32 of word i // 32 is set for each allowed id i."""
    ids = np.frombuffer(allowed_ids, np.int32)
    bits = np.zeros(-(-vocab_size // 32) * 32, dtype=np.uint8)
    bits[ids[_in_vocabulary(ids, len(bits))]] = 1
    return np.packbits(bits, bitorder="little").view("<u4")
