"""From a step's logits to what its requests are told: fills in what each row is for, and reads the answers.

The mathematics is the backend's: model.ops.Ops.sample. Letters: N rows of logits, V vocabulary.
"""

from dataclasses import dataclass, replace

import numpy as np
from torch import Tensor

from engine.execution.decode_batch import LogitRows
from engine.execution.device_transfer import HostCopy, to_device
from engine.execution.logit_masks import LogitMasks
from engine.execution.persistent_batch import Int64s, PersistentBatch
from engine.scheduling.step_plan import RowFailed, Sampled
from engine.types import NOTHING_TO_SAMPLE, TokenLogprobs
from model.ops.interface import Ops
from model.sampling_batch import MIN_TEMPERATURE, FloatParam, IntParam, SamplingRows, Status

NO_TOKEN = RowFailed(NOTHING_TO_SAMPLE)
NOT_FINITE = RowFailed("the model computed no finite logits for this request")

Outcomes = dict[int, Sampled | RowFailed]
PromptLogprobs = dict[int, list[TokenLogprobs]]


@dataclass(frozen=True)
class PendingSamples:
    """Answers that may still be on their way from the device."""

    rows: LogitRows
    num_logprobs: list[int]  # of each row, -1: none
    failed: dict[int, RowFailed]  # what was found before the device was asked
    answers: HostCopy  # the fields of SampledRows; those of log probabilities only where a row wants them


@dataclass(frozen=True)
class _Standing:
    """What rows ask for. Where all of them are sampled and none is constrained, only positions change until the next
    step of other rows."""

    of: Int64s  # LogitRows.rows
    int_params: Int64s
    sent: SamplingRows
    num_logprobs: list[int]


class Sampler:
    """Keeps what the last step's rows asked for."""

    def __init__(self, ops: Ops, rows: PersistentBatch, eos_token_ids: tuple[int, ...]) -> None:
        self._ops = ops
        self._rows = rows
        self._eos_token_ids = eos_token_ids
        self._standing: _Standing | None = None

    def launch(self, logits: Tensor, wanted: LogitRows) -> PendingSamples:
        """logits [N, V] float32, a row for each that is wanted. Waits for no device."""
        sampling_rows, num_logprobs, failed = self._fill(wanted)
        answers = self._ops.sample(logits, sampling_rows)
        fetched = [answers.token_ids, answers.status]
        if sampling_rows.max_logprobs >= 0:
            fetched += [answers.logprob, answers.top_ids, answers.top_logprobs]
        return PendingSamples(wanted, num_logprobs, failed, HostCopy(fetched))

    def _fill(self, wanted: LogitRows) -> tuple[SamplingRows, list[int], dict[int, RowFailed]]:
        standing = self._standing
        if standing is None or standing.of is not wanted.rows:
            return self._fill_anew(wanted)
        standing.int_params[:, IntParam.NUM_TOKENS] = wanted.positions + 1
        return self._sent(standing, wanted), standing.num_logprobs, {}

    def _fill_anew(self, wanted: LogitRows) -> tuple[SamplingRows, list[int], dict[int, RowFailed]]:
        rows, device = self._rows, self._rows.device
        float_params, int_params = rows.float_params[wanted.rows], rows.int_params[wanted.rows]
        int_params[:, IntParam.NUM_TOKENS] = wanted.positions + 1
        self._fill_scores(wanted, int_params)
        constraints = LogitMasks(rows.vocab_size, self._eos_token_ids)
        constrained = rows.is_constrained[wanted.rows[: wanted.num_sampled]].nonzero()[0].tolist()
        for index in constrained:
            sequence = wanted.sequences[index]
            num_generated = int(wanted.positions[index]) + 1 - sequence.num_prompt_tokens
            constraints.add(sequence, num_generated, int_params[index])
        bias_ids, bias_values = constraints.biases(device)
        penalties = float_params[:, FloatParam.REPETITION :] != (1.0, 0.0, 0.0)
        sampling_rows = SamplingRows(
            float_params=to_device(float_params, device),
            int_params=to_device(int_params, device),
            history=rows.tokens,
            bias_ids=bias_ids,
            bias_values=bias_values,
            masks=constraints.masks(device),
            max_logprobs=int(int_params[:, IntParam.NUM_LOGPROBS].max()),
            is_greedy=bool((float_params[:, FloatParam.TEMPERATURE] < MIN_TEMPERATURE).all()),
            has_penalties=bool(penalties.any()),
        )
        filled = _Standing(wanted.rows, int_params, sampling_rows, int_params[:, IntParam.NUM_LOGPROBS].tolist())
        self._standing = filled if wanted.num_sampled == len(int_params) and not constrained else None
        return self._sent(filled, wanted), filled.num_logprobs, constraints.failed

    def _sent(self, standing: "_Standing", wanted: LogitRows) -> SamplingRows:
        """With the numbers as they stand now; only penalties look at the history, at no more than there is of it."""
        rows, device = standing.sent, self._rows.device
        if device.type != "cpu":
            rows = replace(rows, int_params=to_device(standing.int_params, device))
        if rows.has_penalties:
            rows = replace(rows, history=self._rows.tokens[:, : int(wanted.positions.max()) + 2])
        return rows

    @staticmethod
    def _fill_scores(wanted: LogitRows, int_params: np.ndarray[tuple[int, int], np.dtype[np.int64]]) -> None:
        for index in range(wanted.num_sampled, len(int_params)):
            token_ids = wanted.sequences[index].token_ids
            int_params[index, IntParam.TARGET] = token_ids[int(wanted.positions[index]) + 1]
            int_params[index, IntParam.NUM_LOGPROBS] = max(0, int_params[index, IntParam.NUM_LOGPROBS])

    def finish(self, sampling: PendingSamples) -> tuple[Outcomes, PromptLogprobs]:
        """Waits for the device. A row without a token fails its own request alone."""
        wanted = sampling.rows
        ids = [sequence.request_id for sequence in wanted.sequences]
        token_ids, status, *scored = sampling.answers.lists()
        logprobs = _logprobs(sampling.num_logprobs, token_ids, *scored) if scored else [None] * len(ids)
        count = wanted.num_sampled
        outcomes: Outcomes = dict(zip(ids[:count], map(Sampled, token_ids[:count], logprobs), strict=True))
        scores: PromptLogprobs = {}
        for index in range(count, len(ids)):
            score = logprobs[index]
            assert score is not None
            scores.setdefault(ids[index], []).append(score)
        if any(status):
            outcomes |= {ids[i]: NO_TOKEN for i, s in enumerate(status) if s == Status.NO_TOKEN}
            outcomes |= {ids[i]: NOT_FINITE for i, s in enumerate(status) if s == Status.NOT_FINITE}
        for request_id, failure in sampling.failed.items():
            if outcomes[request_id] is not NOT_FINITE:
                outcomes[request_id] = failure
        return outcomes, scores


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
