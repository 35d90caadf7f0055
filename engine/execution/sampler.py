"""Sampling of a step's logits: parameters of each row to the backend, tokens and log probabilities back.

The backend samples: Ops.sample in model/ops/interface.py. Letters: N rows of logits, V vocabulary.
"""

from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from torch import Tensor

from engine.execution.decode_batch import LogitRows
from engine.execution.device_transfer import HostLists, to_device
from engine.execution.draft_rows import count_accepted, guesses_before, known_rows
from engine.execution.draft_sampling import DraftSampling
from engine.execution.logit_masks import LogitMasks
from engine.execution.persistent_batch import Int64s, PersistentBatch, view_of
from engine.scheduling.step_plan import RowFailed, Sampled
from engine.types import NOTHING_TO_SAMPLE, TokenLogprobs
from model.ops.interface import Ops
from model.sampling_batch import MIN_TEMPERATURE, FloatParam, IntParam, SamplingRows, Status

HISTORY_STEP = 256  # tokens
NUM_TOKEN_FIELDS = 2  # of SampledRows: those in front of the log probabilities
NO_TOKEN = RowFailed(NOTHING_TO_SAMPLE)
NOT_FINITE = RowFailed("the model computed no finite logits for this request")

Outcomes = dict[int, Sampled | RowFailed]
PromptLogprobs = dict[int, list[TokenLogprobs]]
BehindDrafts = dict[int, list[Sampled]]  # as in StepResult


class PendingSamples(NamedTuple):
    """Results of sampling that may still be on their way from the device."""

    rows: LogitRows
    num_logprobs: list[int]  # of each row; -1: none
    failed: dict[int, RowFailed]  # by request id, found before the launch
    results: HostLists  # the fields of SampledRows; log probabilities only if a row needs them


class PreparedRows(NamedTuple):
    """Parameters of a step's rows of logits."""

    rows: LogitRows
    on_device: SamplingRows
    num_logprobs: list[int]  # of each row; -1: none
    failed: dict[int, RowFailed]  # by request id
    has_copied_histories: bool = False  # sampled tokens are not written to those of the requests


@dataclass(slots=True)
class _KeptRows:
    """Parameters of a step's rows, each of which samples a token. The following steps of the same rows change them in
    place."""

    rows: Int64s  # LogitRows.rows
    int_params: Int64s
    num_tokens: "memoryview[int]"  # the column NUM_TOKENS of `int_params`
    on_device: SamplingRows
    num_logprobs: list[int]
    masks: LogitMasks
    bias_ends: list[tuple[int, int]]  # rows with min_tokens: index, and the number of tokens that changes its biases

    def advance(self, positions: list[int]) -> bool:
        """Set the rows' positions, and the masks behind their newest tokens. Return False if other parameters change:
        `min_tokens` are reached, or a grammar has failed."""
        if any(positions[index] + 1 >= end for index, end in self.bias_ends):
            return False
        for index, position in enumerate(positions):
            self.num_tokens[index] = position + 1
        return self.masks.next_masks()


class Sampler:
    """Samples the rows of each step. Keeps the last step's parameters for a next step of the same rows."""

    def __init__(self, ops: Ops, requests: PersistentBatch, eos_token_ids: tuple[int, ...]) -> None:
        self._ops = ops
        self._requests = requests
        self._eos_token_ids = eos_token_ids
        self._kept: _KeptRows | None = None
        self._drafts = DraftSampling(requests)

    def launch(self, logits: Tensor, step: PreparedRows) -> PendingSamples:
        """Sample logits [N, V] float32, one row for each of the prepared ones, without waiting for the device."""
        sampled = self._ops.sample(logits, step.on_device)
        if step.has_copied_histories:
            self._write_undrafted(step.rows, sampled.token_ids)
        results = sampled.arrays if logits.is_cpu else sampled.tensors
        if step.on_device.max_logprobs < 0:
            results = results[:NUM_TOKEN_FIELDS]
        return PendingSamples(step.rows, step.num_logprobs, step.failed, HostLists(results))

    def _write_undrafted(self, rows: LogitRows, token_ids: Tensor) -> None:
        """Append the sampled tokens to the requests without drafts. Of the others the host decides which ones count."""
        drafted = {row for chunk in rows.drafted for row in chunk.rows}
        plain = np.array([row for row in range(rows.num_sampled) if row not in drafted], dtype=np.int64)
        if len(plain):
            new = token_ids[to_device(plain, self._requests.device)]
            self._requests.write_sampled(rows.rows[plain], rows.positions[plain] + 1, new)

    def prepare(self, rows: LogitRows) -> PreparedRows:
        """Return the parameters of these rows. On a CPU they are valid until the next call."""
        on_cpu = self._requests.device.type == "cpu"
        if rows.drafted and on_cpu and rows.num_sampled == len(rows.sequences):
            drafts = self._drafts.prepare(rows)
            if drafts is not None:
                return PreparedRows(rows, *drafts)
        kept, positions = self._kept, rows.positions.tolist()
        if kept is None or kept.rows is not rows.rows or not kept.advance(positions):
            return self._fill_new(rows)
        kept.on_device = self._with_history(kept.on_device, positions)
        return PreparedRows(rows, kept.on_device if on_cpu else self._sent(kept), kept.num_logprobs, {})

    def _with_history(self, rows: SamplingRows, positions: list[int]) -> SamplingRows:
        """Return the rows with a history that has room for the next tokens. Only penalties read it: its width bounds
        their work, and grows in steps, so that most steps have the same rows."""
        if not rows.has_penalties:
            return rows
        tokens = self._requests.tokens
        width = min(-(-(max(positions) + 2) // HISTORY_STEP) * HISTORY_STEP, tokens.shape[1])
        return rows if rows.history.shape[1] == width else replace(rows, history=tokens[:, :width])

    def _sent(self, kept: _KeptRows) -> SamplingRows:
        """Copy what has changed to the GPU, where a step in flight may still read the copies before."""
        device = self._requests.device
        masks = kept.masks.masks(device) if kept.masks.has_grammars else kept.on_device.masks
        return replace(kept.on_device, int_params=to_device(kept.int_params, device), masks=masks)

    def _fill_new(self, rows: LogitRows) -> PreparedRows:
        requests, device = self._requests, self._requests.device
        float_params, int_params = requests.float_params[rows.rows], requests.int_params[rows.rows]
        int_params[:, IntParam.NUM_TOKENS] = rows.positions + 1
        if rows.drafted:
            int_params[:, IntParam.HISTORY_ROW] = np.arange(len(rows.rows))
        self._fill_scores(rows, int_params)
        masks = LogitMasks(requests.vocab_size, self._eos_token_ids)
        bias_ends = self._fill_constraints(rows, int_params, masks)
        bias_ids, bias_values = masks.biases(device)
        penalties = float_params[:, FloatParam.REPETITION :] != (1.0, 0.0, 0.0)
        sampling_rows = SamplingRows(
            float_params=to_device(float_params, device),
            int_params=to_device(int_params, device),
            history=requests.tokens,
            bias_ids=bias_ids,
            bias_values=bias_values,
            masks=masks.masks(device),
            max_logprobs=int(int_params[:, IntParam.NUM_LOGPROBS].max()),
            is_greedy=bool((float_params[:, FloatParam.TEMPERATURE] < MIN_TEMPERATURE).all()),
            has_penalties=bool(penalties.any()),
        )
        if rows.drafted:
            sampling_rows = replace(sampling_rows, history=self._histories(rows))
        else:
            sampling_rows = self._with_history(sampling_rows, rows.positions.tolist())
        num_logprobs = int_params[:, IntParam.NUM_LOGPROBS].tolist()
        if rows.drafted:  # what is kept stays for the step behind it
            return PreparedRows(rows, sampling_rows, num_logprobs, masks.failed, has_copied_histories=True)
        self._kept = None
        if bias_ends is not None and rows.num_sampled == len(int_params) and not masks.failed:
            num_tokens = view_of(int_params[:, IntParam.NUM_TOKENS])
            self._kept = _KeptRows(rows.rows, int_params, num_tokens, sampling_rows, num_logprobs, masks, bias_ends)
        return PreparedRows(rows, sampling_rows, num_logprobs, masks.failed)

    def _fill_constraints(self, rows: LogitRows, int_params: Int64s, masks: LogitMasks) -> list[tuple[int, int]] | None:
        """Add the constrained rows to `masks`. Return _KeptRows.bias_ends; None if each token may change biases."""
        requests = self._requests
        bias_ends: list[tuple[int, int]] = []
        has_long_words = False
        guessed = guesses_before(rows.drafted)
        for index in requests.is_constrained[rows.rows[: rows.num_sampled]].nonzero()[0].tolist():
            sequence, constraints = rows.sequences[index], requests.constraints[rows.rows[index]]
            assert constraints is not None
            num_generated = int(rows.positions[index]) + 1 - sequence.num_prompt_tokens
            masks.add(sequence, constraints, num_generated, int_params[index], guessed.get(index, ()))
            has_long_words = has_long_words or constraints.has_long_words
            if num_generated < constraints.min_tokens:
                bias_ends.append((index, sequence.num_prompt_tokens + constraints.min_tokens))
        return None if has_long_words else bias_ends

    def _histories(self, rows: LogitRows) -> Tensor:
        """Return a history for each row. In a shared one each row of a draft would write its token where the next row
        reads the drafted one."""
        tokens, width = self._requests.tokens, int(rows.positions.max()) + 2
        return tokens[:, :width].index_select(0, to_device(rows.rows, self._requests.device))

    @staticmethod
    def _fill_scores(rows: LogitRows, int_params: np.ndarray[tuple[int, int], np.dtype[np.int64]]) -> None:
        for index in range(rows.num_sampled, len(int_params)):
            token_ids = rows.sequences[index].token_ids
            int_params[index, IntParam.TARGET] = token_ids[int(rows.positions[index]) + 1]
            int_params[index, IntParam.NUM_LOGPROBS] = max(0, int_params[index, IntParam.NUM_LOGPROBS])

    def finish(self, pending: PendingSamples) -> tuple[Outcomes, PromptLogprobs, BehindDrafts]:
        """Wait for the device and return the results. A row without a token fails only its own request."""
        rows = pending.rows
        token_ids, status, *scored = pending.results.wait()
        logprobs = _logprobs(pending.num_logprobs, token_ids, *scored) if scored else [None] * len(token_ids)
        outcomes: Outcomes = {
            rows.sequences[row].request_id: Sampled(token_ids[row], logprobs[row])
            for row in known_rows(rows.drafted, rows.num_sampled)
        }
        scores: PromptLogprobs = {}
        for row in range(rows.num_sampled, len(token_ids)):
            score = logprobs[row]
            assert score is not None
            scores.setdefault(rows.sequences[row].request_id, []).append(score)
        if any(status):
            outcomes |= _failures(rows, status)
        for request_id, failure in pending.failed.items():
            if outcomes[request_id] is not NOT_FINITE:
                outcomes[request_id] = failure
        behind: BehindDrafts = {}
        for drafted in rows.drafted:
            request_id, first = rows.sequences[drafted.first].request_id, drafted.first + 1
            if not isinstance(outcomes[request_id], RowFailed):
                end = first + count_accepted(drafted, token_ids, status)
                behind[request_id] = list(map(Sampled, token_ids[first:end], logprobs[first:end]))
        return outcomes, scores, behind


def _failures(rows: LogitRows, status: list[int]) -> dict[int, RowFailed]:
    """Return the failures of requests. That a row behind a guess has no token does not count, since the guess may be
    wrong; that its numbers are not finite does, because it may have spoiled the other rows."""
    behind_guesses = {row for drafted in rows.drafted for row in drafted.rows[1:]}
    no_token = [row for row, s in enumerate(status) if s == Status.NO_TOKEN and row not in behind_guesses]
    not_finite = [row for row, s in enumerate(status) if s == Status.NOT_FINITE]
    failures = {rows.sequences[row].request_id: NO_TOKEN for row in no_token}
    return failures | {rows.sequences[row].request_id: NOT_FINITE for row in not_finite}


def _logprobs(
    counts: list[int],
    token_ids: list[int],
    logprob: list[float],
    top_ids: list[list[int]],
    top: list[list[float]],
) -> list[TokenLogprobs | None]:
    return [
        None if count < 0 else TokenLogprobs(token_ids[i], logprob[i], top_ids[i][:count], top[i][:count])
        for i, count in enumerate(counts)
    ]
