"""Requests into the engine and outputs out of it. Plain data.

One request is one *choice*: a prompt with n = 3 arrives as three requests that differ in `choice_index`.
"""

from typing import Literal

import msgspec

from engine.token_constraints import NO_CONSTRAINTS, TokenConstraints

FinishReason = Literal["stop", "length", "abort", "error", "queue_timeout", "timeout"]
ExpertIds = list[int]  # ids of the k experts of one position in one layer, strongest first
ExpertChoices = list[list[ExpertIds]]  # [layers][positions][k], consecutive positions of one request

NOTHING_TO_SAMPLE = "the request's constraints leave no token to sample"  # error of a request's own constraints


class SamplingParams(msgspec.Struct, frozen=True, omit_defaults=True):
    """Sampling parameters of one choice. The defaults leave the model's distribution unchanged."""

    max_tokens: int = 16  # most tokens to generate; 0 computes the prompt only (scoring)
    min_tokens: int = 0  # end and stop tokens are excluded until this many are generated
    temperature: float = 1.0  # below 1e-4: greedy
    top_k: int = 0  # 0: all
    top_p: float = 1.0
    min_p: float = 0.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    repetition_penalty: float = 1.0
    constraints: TokenConstraints = NO_CONSTRAINTS  # biases, allowed tokens and bad words
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    seed: int = 0  # int64; the server draws one if the client sends none
    prompt_index: int = 0  # index of the prompt in the HTTP request; part of the random counter
    choice_index: int = 0  # index among the prompt's n choices; part of the random counter
    num_logprobs: int | None = None  # None: no log probabilities; 0: of the sampled token; k: also of the k likeliest
    prompt_logprobs: bool = False  # also score each prompt token, given those before it


class Request(msgspec.Struct, frozen=True):
    """One choice to generate. Ids are unique during an engine's life."""

    request_id: int
    prompt_token_ids: list[int]
    params: SamplingParams
    priority: int = 0  # lower runs first, among the requests of its tenant
    cache_salt: str = ""  # requests with different salts never share cached blocks
    arrival_s: float = 0.0  # time.monotonic() when the request reached the server
    experts_per_token: int | None = None  # None: the engine's default
    expert_mask: list[list[bool]] | None = None  # [layers][experts], False disables an expert; None: all enabled
    expert_usage: bool = False  # count the experts of prompt positions, which are all computed, not cached
    expert_routing: bool = False  # return the expert ids of each computed completion position
    gate_logits: bool = False  # with expert_routing: also return the gate logits of each of its positions
    prompt_routing: bool = False  # with expert_routing: also of prompt positions, which are all computed, not cached
    grammar: str | None = None  # of llguidance, with its option no_forcing; may end with grammars.matcher.FEW_READINGS
    deadline_s: float | None = None  # time.monotonic() at which the request ends, finished or not
    queue_deadline_s: float | None = None  # likewise, if no step has computed a part of it by then
    group: int | None = None  # the same for all choices of one HTTP request; None: a request of one choice
    overhead_tokens: int = 0  # of the tenant's work outside the engine, in prompt tokens that would cost as much
    tenant: int = 0  # running slots are shared among tenants by the service they received
    embedding_len: int | None = None  # numbers of the prompt's embedding; needs max_tokens 0. None: no embedding
    prediction_token_ids: list[int] = []  # text that the completion probably resembles; changes no token
    adapter: str = ""  # digest of the LoRA adapter, one of Ready.adapters; empty: the model alone


def num_carried_ids(request: Request) -> int:
    """Return the number of token ids that are sent to the engine for a choice: prompt, prediction and constraints."""
    params = request.params
    num_texts = len(request.prompt_token_ids) + len(request.prediction_token_ids)
    return num_texts + params.constraints.num_ids + len(params.stop_token_ids)


class Vocabulary(msgspec.Struct, frozen=True):
    """Tokens as the engine needs them; built by the server's tokenizer."""

    tokens: list[bytes]  # text of each id; empty for ids that never occur in a text
    special_ids: list[int]  # control tokens; they are not part of any text
    end_ids: list[int] = []  # tokens that end an answer, by the tokenizer


class TokenLogprobs(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Log probabilities at one position: log_softmax of the raw logits, before penalties, bias and temperature."""

    token_id: int  # token at this position
    logprob: float
    top_ids: list[int]  # most likely tokens, descending; ties to the lower id
    top_logprobs: list[float]


class Timing(msgspec.Struct, frozen=True):
    """Times of a request's events, in time.monotonic() seconds (one clock for both processes)."""

    arrival_s: float
    first_scheduled_s: float | None = None
    first_token_s: float | None = None
    finished_s: float | None = None


class RequestOutput(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """Output of one step for one request: new tokens, or its end, or both."""

    request_id: int
    token_ids: list[int] = []  # new tokens, the end token included
    logprobs: list[TokenLogprobs] | None = None  # one per new token, if requested
    prompt_logprobs: list[TokenLogprobs] | None = None  # of prompt tokens 1.., once, with the first output
    finish_reason: FinishReason | None = None
    stop_token_id: int | None = None  # the end or stop token that finished it
    error: str | None = None  # one line for the client, with finish_reason "error"
    num_cached_tokens: int = 0  # prompt tokens taken from the prefix cache when it was first scheduled
    timing: Timing | None = None  # with the last output
    expert_prompt_tokens: list[list[int]] | None = None  # [layers][experts], once, with the first output
    expert_routing: list[list[ExpertIds]] | None = None  # [position][layers][k] of completion positions computed since
    gate_logits: list[bytes] | None = None  # of these positions: [layers][experts] little-endian float32
    embedding: bytes | None = None  # [embedding_len] little-endian float32 of length 1, with the last output


class ExpertReads(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Experts that the layers of a step needed, where not all are in memory (--expert-memory)."""

    num_hits: int = 0  # were in memory
    num_misses: int = 0  # were read
    num_bytes: int = 0  # that were read
    waited_s: float = 0.0  # time in which there was nothing to compute


class StepStats(msgspec.Struct, frozen=True):
    """Gauges after a step, and counts of the step."""

    num_running: int = 0
    num_waiting: int = 0
    num_blocks_held: int = 0  # used by requests; a cached block that no request uses is free
    num_blocks_cached: int = 0  # free, but still found as a prefix
    num_blocks_total: int = 0  # without the null block
    step_s: float = 0.0
    num_tokens: int = 0  # positions computed in this step, without those of wrong drafted tokens
    num_prefill_tokens: int = 0  # positions of prompts, and recomputed ones
    num_prefix_queries: int = 0  # prompt tokens looked up in the prefix cache
    num_prefix_hits: int = 0  # prompt tokens found there
    num_preemptions: int = 0
    num_window_blocks_freed: int = 0
    num_generated_tokens: int = 0  # in the step's outputs
    num_drafted_tokens: int = 0
    num_accepted_tokens: int = 0  # of the drafted ones: those that the model sampled too
    expert_tokens: list[list[int]] | None = None  # [layers][experts], new since the last report, a few times a second
    expert_reads: ExpertReads | None = None  # None if all experts are in memory


class StepOutput(msgspec.Struct, frozen=True):
    """All outputs of one step, in one message for the whole batch."""

    outputs: list[RequestOutput]
    stats: StepStats


class LayerExperts(msgspec.Struct, frozen=True):
    """Counts of one layer's experts."""

    tokens: list[int]  # [experts]
    pairs: list[list[int]]  # [experts][experts], positions routed to both; symmetric, diagonal 0
    top_tokens: list[list[tuple[int, int]]]  # [experts], most frequent token ids with counts, descending


class ExpertReport(msgspec.Struct, frozen=True):
    """Counts of the experts since `since` (unix time). `layers` is empty for a network without experts."""

    since: float
    layers: list[LayerExperts]
