"""What crosses the engine's boundary: a request coming in, tokens going out. Plain data, no behaviour.

One request is one *choice*: a prompt with n = 3 arrives as three requests that differ in `choice_index`.
"""

from typing import Literal

import msgspec

FinishReason = Literal["stop", "length", "abort", "error", "queue_timeout", "timeout"]
ExpertIds = list[int]  # the k experts that a position took in one layer, the gate's first choice first
ExpertChoices = list[list[ExpertIds]]  # [layers][positions][k], consecutive positions of one request

NOTHING_TO_SAMPLE = "the request's constraints leave no token to sample"  # an error that is the request's own


class SamplingParams(msgspec.Struct, frozen=True, omit_defaults=True):
    """How one choice is sampled. The defaults leave the model's distribution as it is."""

    max_tokens: int = 16  # tokens to generate at most; 0 computes the prompt only (scoring)
    min_tokens: int = 0  # end and stop tokens cannot be sampled before this many
    temperature: float = 1.0  # below 1e-4: greedy
    top_k: int = 0  # 0: all
    top_p: float = 1.0
    min_p: float = 0.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: dict[int, float] = {}
    allowed_token_ids: tuple[int, ...] | None = None  # None: all
    bad_words: tuple[tuple[int, ...], ...] = ()  # each word's ids: the last never follows the others
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    seed: int = 0  # int64; the server draws one where the client gives none
    prompt_index: int = 0  # which prompt of the HTTP request, part of the random counter
    choice_index: int = 0  # which of its n choices, likewise
    num_logprobs: int | None = None  # None: none; 0: of the sampled token; k: of the k likeliest as well
    prompt_logprobs: bool = False  # also of each prompt token, given those before it


class Request(msgspec.Struct, frozen=True):
    """One choice to generate. Ids are unique in an engine's life."""

    request_id: int
    prompt_token_ids: list[int]
    params: SamplingParams
    priority: int = 0  # lower runs first
    cache_salt: str = ""  # requests with different salts never share cached blocks
    arrival_s: float = 0.0  # time.monotonic() when the request reached the server
    experts_per_token: int | None = None  # None: the engine's default
    expert_mask: list[list[bool]] | None = None  # [layers][experts], False: switched off; None: all are on
    expert_usage: bool = False  # count the experts of the prompt's positions; they are all computed, not cached
    expert_routing: bool = False  # tell which experts each computed position of the completion took
    grammar: str | None = None  # what the text must match: llguidance's serialised form, with its option no_forcing
    deadline_s: float | None = None  # time.monotonic() when it ends, finished or not
    queue_deadline_s: float | None = None  # likewise, where no step has computed anything of it by then
    tenant: int = 0  # whose it is: places are shared out among tenants by what they were served


class Vocabulary(msgspec.Struct, frozen=True):
    """What a grammar must know of the tokens; the server's tokenizer makes it."""

    tokens: list[bytes]  # what each id stands for; nothing for ids that never stand in a text
    special_ids: list[int]  # control tokens: no part of any text


class TokenLogprobs(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Log probabilities at one position: log_softmax of the raw logits, before penalties, bias and temperature."""

    token_id: int  # the token that stands at this position
    logprob: float
    top_ids: list[int]  # the likeliest tokens, descending; ties to the lower id
    top_logprobs: list[float]


class Timing(msgspec.Struct, frozen=True):
    """When things happened to a request, in time.monotonic() seconds (one clock for both processes)."""

    arrival_s: float
    first_scheduled_s: float | None = None
    first_token_s: float | None = None
    finished_s: float | None = None


class RequestOutput(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """What one step gave one request: new tokens, or its end, or both."""

    request_id: int
    token_ids: list[int] = []  # new tokens, the end token included
    logprobs: list[TokenLogprobs] | None = None  # one per new token, where asked for
    prompt_logprobs: list[TokenLogprobs] | None = None  # of prompt tokens 1.., once, with the first output
    finish_reason: FinishReason | None = None
    stop_token_id: int | None = None  # the end or stop token that finished it
    error: str | None = None  # one line fit for the client, with finish_reason "error"
    num_cached_tokens: int = 0  # prompt tokens taken from the prefix cache when it was first scheduled
    timing: Timing | None = None  # with the last output
    expert_prompt_tokens: list[list[int]] | None = None  # [layers][experts], once, with the first output
    expert_routing: list[list[ExpertIds]] | None = None  # [position][layers][k] of completion positions computed since


class StepStats(msgspec.Struct, frozen=True):
    """Gauges after a step, and what the step itself did."""

    num_running: int = 0
    num_waiting: int = 0
    num_blocks_held: int = 0  # held by requests; a cached block that no request holds is free
    num_blocks_cached: int = 0  # free, but still findable as a prefix
    num_blocks_total: int = 0  # without the null block
    step_s: float = 0.0
    num_tokens: int = 0  # positions computed in this step
    num_prefill_tokens: int = 0  # those of them that belong to a prompt or are recomputed
    num_prefix_queries: int = 0  # prompt tokens looked up in the prefix cache
    num_prefix_hits: int = 0  # prompt tokens found there
    num_preemptions: int = 0
    num_window_blocks_freed: int = 0
    expert_tokens: list[list[int]] | None = None  # [layers][experts], new since last told; a few times a second


class StepOutput(msgspec.Struct, frozen=True):
    """Everything one step has to tell, whatever the batch size."""

    outputs: list[RequestOutput]
    stats: StepStats


class LayerExperts(msgspec.Struct, frozen=True):
    """What one layer's experts took."""

    tokens: list[int]  # [experts]
    pairs: list[list[int]]  # [experts][experts], positions that took both; symmetric, 0 on the diagonal
    top_tokens: list[list[tuple[int, int]]]  # [experts], the most frequent token ids with their counts, descending


class ExpertReport(msgspec.Struct, frozen=True):
    """What the experts took from `since` (unix time) on. No layers: the network has no experts."""

    since: float
    layers: list[LayerExperts]
