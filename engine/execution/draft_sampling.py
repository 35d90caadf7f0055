"""Sampling parameters of steps with drafts on a CPU. Steps of as many rows share their arrays.

Letters: N rows of logits, V vocabulary.
"""

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from engine.errors import GrammarError
from engine.execution.decode_batch import LogitRows
from engine.execution.logit_masks import GRAMMAR_FAILED
from engine.execution.persistent_batch import PARAM_BYTES, PersistentBatch, view_of
from engine.scheduling.sequence import Sequence
from engine.scheduling.step_plan import RowFailed
from model.sampling_batch import FloatParam, IntParam, SamplingRows

MASKS_STEP = 64  # rows by which the memory of the masks grows


@dataclass(slots=True)
class _Kept:
    """Parameters of the steps of N rows, and views that are written in each."""

    owners: tuple[list[int], bytes]  # of the rows in the last of these steps: their requests, and LogitRows.rows
    param_bytes: tuple["memoryview[int]", ...]  # of float_params and int_params
    num_tokens: "memoryview[int]"  # column of int_params, like the next one
    mask_rows: "memoryview[int]"
    rows: SamplingRows
    num_logprobs: list[int]
    is_usual: bool = False  # False: the present owners need parameters that are not kept


class DraftSampling:
    """Keeps the parameters of rows with neither penalties nor biases, of which a grammar may mask the tokens.

    Nothing reads their histories: each row writes its token to its request's. Up to the first wrong guess these are the
    request's next tokens, and all behind it are written again before they are read.
    """

    def __init__(self, requests: PersistentBatch) -> None:
        self._requests = requests
        self._kept: dict[int, _Kept] = {}  # by N
        self._mask_words = -(-requests.vocab_size // 32)  # of a row
        self._masks = torch.empty(0, self._mask_words, dtype=torch.int32)  # of all steps, one for each row
        self._mask_bytes = memoryview(b"")  # the same memory

    def prepare(self, rows: LogitRows) -> tuple[SamplingRows, list[int], dict[int, RowFailed]] | None:
        """Return the parameters of a step's rows, valid until the next call, the number of log probabilities of each
        (-1: none), and the requests whose grammar has failed, by id; None if they need more parameters."""
        num_rows = len(rows.sequences)
        kept = self._kept.get(num_rows)
        if kept is None:
            kept = self._kept[num_rows] = self._new(num_rows)
        owners = [sequence.request_id for sequence in rows.sequences], rows.rows.tobytes()
        if kept.owners != owners:
            self._fill(kept, rows)
            kept.owners = owners
        if not kept.is_usual:
            return None
        for index, position in enumerate(rows.positions.tolist()):
            kept.num_tokens[index] = position + 1
        failed = {} if kept.rows.masks is None else self._write_masks(rows)
        return kept.rows, kept.num_logprobs, failed

    def _new(self, num_rows: int) -> _Kept:
        float_params = np.empty((num_rows, len(FloatParam)), dtype=np.float32)
        int_params = np.empty((num_rows, len(IntParam)), dtype=np.int64)
        rows = SamplingRows(
            float_params=torch.from_numpy(float_params),
            int_params=torch.from_numpy(int_params),
            history=self._requests.tokens,
            bias_ids=torch.empty(0, dtype=torch.int32),
            bias_values=torch.empty(0),
            masks=None,
            max_logprobs=-1,
            is_greedy=False,  # no claim about the rows
            has_penalties=False,
        )
        param_bytes = view_of(float_params).cast("B"), view_of(int_params).cast("B")
        num_tokens, mask_rows = view_of(int_params[:, IntParam.NUM_TOKENS]), view_of(int_params[:, IntParam.MASK_ROW])
        return _Kept(([], b""), param_bytes, num_tokens, mask_rows, rows, [])

    def _fill(self, kept: _Kept, rows: LogitRows) -> None:
        """Write the parameters of rows of other requests, or of drafts of other lengths."""
        requests, row_indices = self._requests, rows.rows.tolist()
        kept.owners = ([], b"")  # of nobody, should this fail halfway
        kept.is_usual = not any(map(self._has_more_parameters, row_indices, rows.sequences))
        if not kept.is_usual:
            return
        num_logprobs = [sequence.request.params.num_logprobs for sequence in rows.sequences]
        kept.num_logprobs = [-1 if count is None else count for count in num_logprobs]
        has_masks = False
        for index, (row, sequence) in enumerate(zip(row_indices, rows.sequences, strict=True)):
            for copy, original, size in zip(kept.param_bytes, requests.param_bytes, PARAM_BYTES, strict=True):
                copy[index * size : (index + 1) * size] = original[row * size : (row + 1) * size]
            if sequence.matcher is not None:
                kept.mask_rows[index], has_masks = index, True
        max_logprobs, before = max(kept.num_logprobs), kept.rows
        if (max_logprobs, has_masks) != (before.max_logprobs, before.masks is not None):
            masks = self._masks_of(len(row_indices)) if has_masks else None
            kept.rows = replace(before, max_logprobs=max_logprobs, masks=masks)

    def _has_more_parameters(self, row: int, sequence: Sequence) -> bool:
        """Return whether a request has penalties or biases."""
        params, constraints = sequence.request.params, self._requests.constraints[row]
        if constraints is not None and not constraints.is_empty:
            return True
        return (params.repetition_penalty, params.frequency_penalty, params.presence_penalty) != (1.0, 0.0, 0.0)

    def _masks_of(self, num_rows: int) -> Tensor:
        """Return the memory of the masks of N rows."""
        if num_rows > len(self._masks):
            masks = np.zeros((-(-num_rows // MASKS_STEP) * MASKS_STEP, self._mask_words), dtype=np.int32)
            self._masks, self._mask_bytes = torch.from_numpy(masks), view_of(masks).cast("B")
            self._kept = {count: kept for count, kept in self._kept.items() if kept.rows.masks is None}
        return self._masks[:num_rows]

    def _write_masks(self, rows: LogitRows) -> dict[int, RowFailed]:
        """Write the masks of the rows with grammars. Return the requests whose grammar has failed, by id."""
        failed: dict[int, RowFailed] = {}
        size = 4 * self._mask_words
        guessed = {row: chunk.draft[: row - chunk.first] for chunk in rows.drafted for row in chunk.rows}
        for index, sequence in enumerate(rows.sequences):
            matcher = sequence.matcher
            if matcher is None:
                continue
            draft = guessed.get(index)
            try:
                if draft:
                    mask = matcher.draft_bitmask(draft)
                else:
                    mask = matcher.bitmask(sequence.token_ids, sequence.num_prompt_tokens)
            except GrammarError:
                failed[sequence.request_id] = GRAMMAR_FAILED
                continue
            self._mask_bytes[index * size : (index + 1) * size] = mask[:size]
        return failed
