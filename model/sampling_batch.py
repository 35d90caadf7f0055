"""Input and output of sampling: rows of logits that sample a token, and rows that score a given token.

The token history of each request stays on the model's device: a sampled token is appended there, and the next step
reads it from there. Letters: N rows, V vocabulary, S requests' rows in the history.
"""

from dataclasses import dataclass
from enum import IntEnum
from functools import cached_property
from typing import Any

from numpy.typing import NDArray
from torch import Tensor

MIN_TEMPERATURE = 1e-4  # lower is greedy: logits / temperature would leave float32's range for no visible change


class FloatParam(IntEnum):
    """Columns of SamplingRows.float_params."""

    TEMPERATURE = 0
    TOP_P = 1
    MIN_P = 2
    REPETITION = 3
    FREQUENCY = 4
    PRESENCE = 5


class IntParam(IntEnum):
    """Columns of SamplingRows.int_params."""

    TOP_K = 0  # 0: all tokens
    NUM_LOGPROBS = 1  # -1: no log probabilities; 0: of the token itself; k: of the k most likely tokens as well
    SEED = 2
    PROMPT_INDEX = 3  # with choice and position, the counter of the random generator
    CHOICE_INDEX = 4
    NUM_PROMPT_TOKENS = 5
    NUM_TOKENS = 6  # tokens in the history so far, and thus the index of the next one
    TARGET = 7  # the token to score; -1: sample one
    HISTORY_ROW = 8
    MASK_ROW = 9  # -1: no mask
    FIRST_BIAS = 10  # start of the row's part of bias_ids, which follows the part of the row before
    END_BIAS = 11


class Status(IntEnum):
    """Result of a row."""

    DONE = 0
    NOT_FINITE = 1  # a logit is NaN or +Inf, or all are -Inf
    NO_TOKEN = 2  # masks and biases exclude every token


@dataclass(frozen=True, eq=False)  # compared by identity: a backend keeps what belongs to the rows while they live
class SamplingRows:
    """Sampling parameters of each row of logits, on the model's device.

    `max_logprobs`, `is_greedy` and `has_penalties` let a backend skip work that no row needs.
    """

    float_params: Tensor  # [N, 6] float32, columns of FloatParam
    int_params: Tensor  # [N, 12] int64, columns of IntParam
    history: Tensor  # [S, L] int32, WRITTEN at NUM_TOKENS of each sampled row; may be a slice of wider rows
    bias_ids: Tensor  # [B] int32
    bias_values: Tensor  # [B] float32; -Inf forbids a token
    masks: Tensor | None  # [M, ceil(V / 32)] int32: bit i % 32 of word i / 32 allows token i
    max_logprobs: int  # the largest NUM_LOGPROBS
    is_greedy: bool  # all rows are greedy
    has_penalties: bool  # some row may have penalties


@dataclass(frozen=True)
class SampledRows:
    """Tokens and log probabilities of each row.

    Log probabilities are log_softmax of the raw logits; they are undefined for rows that did not request them and for
    rows whose status is not DONE.
    """

    token_ids: Tensor  # [N] int64: the sampled or scored token; 0 if the status is not DONE
    status: Tensor  # [N] uint8
    logprob: Tensor  # [N] float32
    top_ids: Tensor  # [N, max(0, max_logprobs)] int32, by descending probability, ties to the lower id
    top_logprobs: Tensor  # [N, max(0, max_logprobs)] float32

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """All fields, in order."""
        return self.token_ids, self.status, self.logprob, self.top_ids, self.top_logprobs

    @cached_property
    def arrays(self) -> tuple[NDArray[Any], ...]:
        """All fields, in order, on a CPU: arrays that share their memory."""
        return tuple(tensor.numpy() for tensor in self.tensors)
