"""Sampling parameters of steps with drafts on a CPU. Steps of as many rows share their arrays.

Letters: N rows of logits, V vocabulary.
"""

from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from engine.errors import GrammarError
from engine.execution.decode_batch import LogitRows
from engine.execution.logit_masks import GRAMMAR_FAILED
from engine.execution.persistent_batch import Int64s, PersistentBatch, view_of
from engine.scheduling.step_plan import RowFailed
from model.sampling_batch import MIN_TEMPERATURE, FloatParam, IntParam, SamplingRows

MASKS_STEP = 64  # rows by which the memory of the masks grows


@dataclass(slots=True)
class _Kept:
    """Parameters of the steps of N rows, and views that are written in each."""

    owners: tuple[list[int], bytes]  # of the rows in the last of these steps: their requests, and LogitRows.rows
    float_params: NDArray[np.float32]
    int_params: Int64s
    num_tokens: "memoryview[int]"  # the column NUM_TOKENS of `int_params`
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
            is_greedy=False,
            has_penalties=False,
        )
        num_tokens = view_of(int_params[:, IntParam.NUM_TOKENS])
        return _Kept(([], b""), float_params, int_params, num_tokens, rows, [])

    def _fill(self, kept: _Kept, rows: LogitRows) -> None:
        """Write the parameters of rows of other requests, or of drafts of other lengths."""
        requests = self._requests
        np.take(requests.float_params, rows.rows, axis=0, out=kept.float_params)
        np.take(requests.int_params, rows.rows, axis=0, out=kept.int_params)
        has_penalties = bool((kept.float_params[:, FloatParam.REPETITION :] != (1.0, 0.0, 0.0)).any())
        constraints = [requests.constraints[row] for row in rows.rows.tolist()]
        kept.is_usual = not has_penalties and all(c is None or c.is_empty for c in constraints)
        kept.num_logprobs = kept.int_params[:, IntParam.NUM_LOGPROBS].tolist()
        masked = [index for index, sequence in enumerate(rows.sequences) if sequence.matcher is not None]
        kept.int_params[masked, IntParam.MASK_ROW] = masked
        is_greedy = bool((kept.float_params[:, FloatParam.TEMPERATURE] < MIN_TEMPERATURE).all())
        max_logprobs, before = max(kept.num_logprobs), kept.rows
        if (max_logprobs, is_greedy, bool(masked)) != (before.max_logprobs, before.is_greedy, before.masks is not None):
            masks = self._masks_of(len(rows.rows)) if masked else None
            kept.rows = replace(before, max_logprobs=max_logprobs, is_greedy=is_greedy, masks=masks)

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
