"""Sampling parameters of steps with drafts on a CPU. All steps share one memory, of which each uses the first rows.

Letters: N rows of logits, V vocabulary.
"""

from operator import attrgetter

import numpy as np
import torch

from engine.errors import GrammarError
from engine.execution.decode_batch import LogitRows
from engine.execution.draft_rows import guesses_before
from engine.execution.logit_masks import GRAMMAR_FAILED, grammar_mask
from engine.execution.persistent_batch import PersistentBatch, view_of
from engine.scheduling.sequence import Sequence
from engine.scheduling.step_plan import RowFailed
from model.sampling_batch import FloatParam, IntParam, SamplingRows

REQUEST_ID = attrgetter("request_id")  # with map: no Python code runs for each row

ROWS_STEP = 64  # rows by which the memory grows
MAX_KINDS = 512  # of steps whose SamplingRows are kept


class DraftSampling:
    """Keeps the parameters of rows with neither penalties nor biases, of which a grammar may mask the tokens.

    Rows keep their parameters while they belong to the same requests, so that one request's drafts of any length share
    them. Nothing reads their histories: each row writes its token to its request's. Up to the first wrong guess these
    are the request's next tokens, and all behind it are written again before they are read.
    """

    def __init__(self, requests: PersistentBatch) -> None:
        self._requests = requests
        self._mask_words = -(-requests.vocab_size // 32)  # of a row
        self._make_memory(0)

    def _make_memory(self, num_rows: int) -> None:
        self._max_rows = num_rows
        self._owners: tuple[list[int], bytes] = [], b""  # of the first rows: their requests, and LogitRows.rows
        self._num_logprobs: list[int] = []  # of each of these rows
        self._is_usual = True  # False: some of these requests need parameters that are not kept
        self._has_masks = False
        self._float_params = np.empty((num_rows, len(FloatParam)), dtype=np.float32)
        self._int_params = np.empty((num_rows, len(IntParam)), dtype=np.int64)
        self._num_tokens = view_of(self._int_params[:, IntParam.NUM_TOKENS])
        self._mask_rows = view_of(self._int_params[:, IntParam.MASK_ROW])
        self._kinds: dict[tuple[int, int, bool], SamplingRows] = {}  # by N, log probabilities, and whether with masks
        self._masks = torch.empty(0, self._mask_words, dtype=torch.int32)  # one for each row, once a row has one
        self._mask_bytes = memoryview(b"")  # the same memory

    def prepare(self, rows: LogitRows) -> tuple[SamplingRows, list[int], dict[int, RowFailed]] | None:
        """Return the parameters of a step's rows, valid until the next call, the number of log probabilities of each
        (-1: none), and the requests whose grammar has failed, by id; None if they need more parameters."""
        num_rows = len(rows.sequences)
        if num_rows > self._max_rows:
            self._make_memory(-(-num_rows // ROWS_STEP) * ROWS_STEP)
        ids, row_indices = list(map(REQUEST_ID, rows.sequences)), rows.rows.tobytes()
        if (ids, row_indices) != (self._owners[0][:num_rows], self._owners[1][: len(row_indices)]):
            self._fill(rows)
            self._owners = ids, row_indices
        if not self._is_usual:
            return None
        for index, position in enumerate(rows.positions.tolist()):
            self._num_tokens[index] = position + 1
        num_logprobs = self._num_logprobs[:num_rows]
        prepared = self._rows_of(num_rows, max(num_logprobs), self._has_masks)
        return prepared, num_logprobs, self._write_masks(rows) if self._has_masks else {}

    def _fill(self, rows: LogitRows) -> None:
        """Write the parameters of rows of other requests, or of drafts of other lengths in front of them."""
        self._owners = [], b""  # should this fail halfway
        count = len(rows.sequences)
        for params, kept in (
            (self._requests.float_params, self._float_params),
            (self._requests.int_params, self._int_params),
        ):
            np.take(params, rows.rows, axis=0, out=kept[:count], mode="clip")  # the usual mode would copy twice
        owners = dict(zip(rows.sequences, rows.rows.tolist(), strict=True))
        self._is_usual = not any(self._has_more_parameters(row, sequence) for sequence, row in owners.items())
        self._has_masks = any(sequence.matcher is not None for sequence in owners)
        num_logprobs = [sequence.request.params.num_logprobs for sequence in rows.sequences]
        self._num_logprobs = [-1 if number is None else number for number in num_logprobs]
        for index, sequence in enumerate(rows.sequences if self._has_masks else ()):
            if sequence.matcher is not None:
                self._mask_rows[index] = index

    def _has_more_parameters(self, row: int, sequence: Sequence) -> bool:
        """Return whether a request has penalties or biases."""
        params, constraints = sequence.request.params, self._requests.constraints[row]
        if constraints is not None and not constraints.is_empty:
            return True
        return (params.repetition_penalty, params.frequency_penalty, params.presence_penalty) != (1.0, 0.0, 0.0)

    def _rows_of(self, num_rows: int, max_logprobs: int, has_masks: bool) -> SamplingRows:
        """Return the first N rows, the same object for steps of one kind: what is prepared for it stays valid."""
        kind = num_rows, max_logprobs, has_masks
        rows = self._kinds.get(kind)
        if rows is None:
            if len(self._kinds) == MAX_KINDS:
                self._kinds.clear()
            if has_masks and not len(self._masks):
                masks = np.zeros((self._max_rows, self._mask_words), dtype=np.int32)
                self._masks, self._mask_bytes = torch.from_numpy(masks), view_of(masks).cast("B")
            rows = self._kinds[kind] = self._new_rows(*kind)
        return rows

    def _new_rows(self, num_rows: int, max_logprobs: int, has_masks: bool) -> SamplingRows:
        return SamplingRows(
            float_params=torch.from_numpy(self._float_params[:num_rows]),
            int_params=torch.from_numpy(self._int_params[:num_rows]),
            history=self._requests.tokens,
            bias_ids=torch.empty(0, dtype=torch.int32),
            bias_values=torch.empty(0),
            masks=self._masks[:num_rows] if has_masks else None,
            max_logprobs=max_logprobs,
            is_greedy=False,  # no claim about the rows
            has_penalties=False,
        )

    def _write_masks(self, rows: LogitRows) -> dict[int, RowFailed]:
        """Write the masks of the rows with grammars. Return the requests whose grammar has failed, by id."""
        failed: dict[int, RowFailed] = {}
        size, guessed = 4 * self._mask_words, guesses_before(rows.drafted)
        for index, sequence in enumerate(rows.sequences):
            if sequence.matcher is None:
                continue
            try:
                mask = grammar_mask(sequence.matcher, sequence, guessed.get(index, ()))
            except GrammarError:
                failed[sequence.request_id] = GRAMMAR_FAILED
                continue
            self._mask_bytes[index * size : (index + 1) * size] = mask[:size]
        return failed
