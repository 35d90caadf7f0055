"""What a step's rows of logits are for: which are sampled and how, which score a token that is given; and the answers.

A request's tokens stay where the model is: the sampled one is written behind them, and the next step reads it there.
Letters: N rows, V vocabulary, S requests' rows in the history.
"""

from dataclasses import dataclass
from enum import IntEnum

from torch import Tensor

MIN_TEMPERATURE = 1e-5  # anything lower is greedy: dividing by it would overflow


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

    TOP_K = 0  # 0: all
    NUM_LOGPROBS = 1  # -1: none; 0: the token's own; k: also of the k likeliest
    SEED = 2
    PROMPT_INDEX = 3  # with choice and position the counter of the random generator
    CHOICE_INDEX = 4
    NUM_PROMPT_TOKENS = 5
    NUM_TOKENS = 6  # in the history so far: the place of the token to come
    TARGET = 7  # the token to score; -1: sample one
    HISTORY_ROW = 8
    MASK_ROW = 9  # -1: none
    FIRST_BIAS = 10  # its part of bias_ids, which lies behind that of the row before
    END_BIAS = 11


class Status(IntEnum):
    """What became of a row."""

    DONE = 0
    NOT_FINITE = 1  # NaN or infinity among its logits, or nothing but -infinity
    NO_TOKEN = 2  # its masks and biases leave none


@dataclass(frozen=True)
class SamplingRows:
    """One entry per row of logits, on the model's device. The flags say what no row asks for, so that it need not be
    looked at."""

    float_params: Tensor  # [N, 6] float32
    int_params: Tensor  # [N, 12] int64
    history: Tensor  # [S, L] int32, WRITTEN: row NUM_TOKENS of each request that is sampled; L may be a part of a row
    bias_ids: Tensor  # [B] int32; -infinity forbids a token
    bias_values: Tensor  # [B] float32
    masks: Tensor | None  # [M, ceil(V / 32)] int32: bit i % 32 of word i / 32 allows token i
    max_logprobs: int  # the largest NUM_LOGPROBS
    is_greedy: bool  # all rows are
    has_penalties: bool


@dataclass(frozen=True)
class SampledRows:
    """The answers. Log probabilities are log_softmax of the raw logits, and mean nothing where none were asked for or
    the row is not done."""

    token_ids: Tensor  # [N] int64: sampled or given; 0 where the row is not done
    status: Tensor  # [N] uint8
    logprob: Tensor  # [N] float32
    top_ids: Tensor  # [N, max(0, max_logprobs)] int32, descending, ties to the lower id
    top_logprobs: Tensor  # likewise, float32
