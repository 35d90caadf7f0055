"""Logit biases and token masks of one step's rows, for requests that restrict which tokens can be sampled.

Only constrained requests are added, so a step of unconstrained ones costs no time here.
"""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from engine.errors import GrammarError
from engine.execution.device_transfer import to_device
from engine.execution.persistent_batch import Int64s
from engine.execution.row_constraints import Float32s, Int32s, Mask, RowConstraints
from engine.scheduling.sequence import Matcher, Sequence
from engine.scheduling.step_plan import RowFailed
from model.sampling_batch import IntParam

GRAMMAR_FAILED = RowFailed("the request's grammar could not be followed any further")


def grammar_mask(matcher: Matcher, sequence: Sequence, guessed: tuple[int, ...]) -> bytes:
    """Return the mask of a row of `sequence`, whose grammar `matcher` follows: behind its text, or behind these drafted
    tokens too. Raises GrammarError."""
    if guessed:
        return matcher.draft_bitmask(guessed)
    return matcher.bitmask(sequence.token_ids, sequence.num_prompt_tokens)


class GrammarRow(NamedTuple):
    """A mask that changes with each token."""

    mask_index: int
    sequence: Sequence
    allowed: Mask | None  # restricts the grammar's masks further


class LogitMasks:
    """Collects biases and masks row by row, in ascending order, and writes their indices into each row's parameters.

    Later steps of the same rows may keep it: next_masks() follows the grammars.
    """

    def __init__(self, vocab_size: int, eos_token_ids: Iterable[int]) -> None:
        self._num_words = -(-vocab_size // 32)
        self._eos_ids = np.array([i for i in eos_token_ids if 0 <= i < vocab_size], dtype=np.int32)
        self._ids: list[Int32s] = []
        self._values: list[Float32s] = []
        self._num_biases = 0
        self._masks: list[Mask] = []
        self._stacked: NDArray[np.uint32] | None = None  # [M, ceil(V / 32)], once all rows are added
        self._grammars: list[GrammarRow] = []
        self.failed: dict[int, RowFailed] = {}  # by request id: the grammar failed

    def add(
        self,
        sequence: Sequence,
        constraints: RowConstraints,
        num_generated: int,
        int_params: Int64s,
        guessed: tuple[int, ...] = (),
    ) -> None:
        """Add the next row's biases and mask; write their indices into its `int_params`.

        `guessed`: drafted tokens between the generated ones and the row's, which `num_generated` counts too."""
        before = [*sequence.last_generated_ids(constraints.num_before), *guessed]
        ids, values = constraints.biases(before, num_generated, self._eos_ids)
        first = self._num_biases
        self._ids.append(ids)
        self._values.append(values)
        self._num_biases += len(ids)
        int_params[IntParam.FIRST_BIAS], int_params[IntParam.END_BIAS] = first, self._num_biases
        mask = self._mask(sequence, constraints.mask, guessed)
        if mask is not None:
            if sequence.matcher is not None:
                self._grammars.append(GrammarRow(len(self._masks), sequence, constraints.mask))
            int_params[IntParam.MASK_ROW] = len(self._masks)
            self._masks.append(mask)

    @property
    def has_grammars(self) -> bool:
        """True if the masks differ from step to step."""
        return bool(self._grammars)

    def next_masks(self) -> bool:
        """Replace the masks of grammars by those behind the newest tokens, on a CPU in the tensor of masks().

        Return False if a grammar has failed. Its row then has no such mask: collect all rows again.
        """
        for row in self._grammars:
            mask = self._mask(row.sequence, row.allowed, ())
            if self.failed:
                return False
            assert self._stacked is not None and mask is not None
            self._stacked[row.mask_index] = mask
        return True

    def _mask(self, sequence: Sequence, mask: Mask | None, guessed: tuple[int, ...]) -> Mask | None:
        """Return `mask` restricted by the grammar of the sequence, if it has one."""
        if sequence.matcher is None:
            return mask
        try:
            bitmask = grammar_mask(sequence.matcher, sequence, guessed)
        except GrammarError:
            self.failed[sequence.request_id] = GRAMMAR_FAILED
            return mask
        allowed = np.frombuffer(bitmask, dtype="<u4")[: self._num_words]
        return allowed if mask is None else mask & allowed

    def biases(self, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        """Return token ids [B] int32 and the bias of each [B] float32."""
        if not self._ids:
            return to_device(np.zeros(0, np.int32), device), to_device(np.zeros(0, np.float32), device)
        return to_device(np.concatenate(self._ids), device), to_device(np.concatenate(self._values), device)

    def masks(self, device: torch.device) -> torch.Tensor | None:
        """Return the masks [M, ceil(V / 32)] int32, one bit per token; None if no row has one."""
        if not self._masks:
            return None
        if self._stacked is None or len(self._stacked) != len(self._masks):
            self._stacked = np.stack(self._masks)
        return to_device(self._stacked.view(np.int32), device)
