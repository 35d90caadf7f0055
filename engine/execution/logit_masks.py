"""Logit biases and token masks of one step's rows, for requests that restrict which tokens can be sampled.

Only constrained requests are added, so a step of unconstrained ones costs no time here.
"""

from collections.abc import Iterable

import numpy as np
import torch

from engine.errors import GrammarError
from engine.execution.device_transfer import to_device
from engine.execution.persistent_batch import Int64s
from engine.scheduling.sequence import Sequence
from engine.scheduling.step_plan import RowFailed
from model.sampling_batch import IntParam

GRAMMAR_FAILED = RowFailed("the request's grammar could not be followed any further")
FORBIDDEN = float("-inf")


class LogitMasks:
    """Collects biases and masks row by row, in ascending order, and writes their indices into each row's parameters."""

    def __init__(self, vocab_size: int, eos_token_ids: tuple[int, ...]) -> None:
        self._vocab_size = vocab_size
        self._eos_token_ids = eos_token_ids
        self._num_words = -(-vocab_size // 32)
        self._ids: list[int] = []
        self._values: list[float] = []
        self._masks: list[np.ndarray[tuple[int], np.dtype[np.uint32]]] = []
        self.failed: dict[int, RowFailed] = {}  # by request id: the grammar failed

    def add(self, sequence: Sequence, num_generated: int, int_params: Int64s) -> None:
        """Add the next row's biases and mask; write their indices into its `int_params`."""
        first = len(self._ids)
        for token_id, value in self._biases(sequence, num_generated):
            if 0 <= token_id < self._vocab_size:
                self._ids.append(token_id)
                self._values.append(value)
        int_params[IntParam.FIRST_BIAS], int_params[IntParam.END_BIAS] = first, len(self._ids)
        mask = self._mask(sequence)
        if mask is not None:
            int_params[IntParam.MASK_ROW] = len(self._masks)
            self._masks.append(mask)

    def _biases(self, sequence: Sequence, num_generated: int) -> Iterable[tuple[int, float]]:
        params = sequence.request.params
        yield from params.logit_bias.items()
        if params.bad_words:
            yield from ((token_id, FORBIDDEN) for token_id in _ends_of_bad_words(params.bad_words, sequence))
        if num_generated < params.min_tokens:
            yield from ((token_id, FORBIDDEN) for token_id in (*self._eos_token_ids, *params.stop_token_ids))

    def _mask(self, sequence: Sequence) -> np.ndarray[tuple[int], np.dtype[np.uint32]] | None:
        allowed = sequence.request.params.allowed_token_ids
        mask = None if allowed is None else _pack_bits(allowed, self._num_words)
        if sequence.matcher is None:
            return mask
        try:
            bitmask = sequence.matcher.bitmask(sequence.token_ids, sequence.num_prompt_tokens)
        except GrammarError:
            self.failed[sequence.request_id] = GRAMMAR_FAILED
            return mask
        grammar_mask = np.frombuffer(bitmask, dtype="<u4")[: self._num_words]
        return grammar_mask if mask is None else mask & grammar_mask

    def biases(self, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        """Return token ids [B] int32 and the bias of each [B] float32."""
        ids, values = np.array(self._ids, dtype=np.int32), np.array(self._values, dtype=np.float32)
        return to_device(ids, device), to_device(values, device)

    def masks(self, device: torch.device) -> torch.Tensor | None:
        """Return the masks [M, ceil(V / 32)] int32, one bit per token; None if no row has one."""
        if not self._masks:
            return None
        return to_device(np.stack(self._masks).view(np.int32), device)


def _pack_bits(token_ids: Iterable[int], num_words: int) -> np.ndarray[tuple[int], np.dtype[np.uint32]]:
    """Set bit i % 32 of word i // 32 for each token id i; ids outside the vocabulary are ignored."""
    bits = np.zeros(num_words * 32, dtype=np.uint8)
    bits[[token_id for token_id in token_ids if 0 <= token_id < len(bits)]] = 1
    return np.packbits(bits, bitorder="little").view("<u4")


def _ends_of_bad_words(bad_words: tuple[tuple[int, ...], ...], sequence: Sequence) -> list[int]:
    """Return the last id of each word whose other ids were just generated: after 5 6, the words (5, 6, 7), (6, 8) and
    (9,) give 7, 8 and 9."""
    generated = sequence.token_ids[sequence.num_prompt_tokens :]
    starts = ((word[:-1], word[-1]) for word in bad_words)
    return [last for start, last in starts if tuple(generated[len(generated) - len(start) :]) == start]
