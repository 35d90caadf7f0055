"""Outputs of one simulated request, and its expected outputs according to the oracle."""

from dataclasses import dataclass, field

import msgspec

from engine.types import Request
from tests.simulator.exact import embedding_of, experts_of, mix, oracle, root_of
from tests.simulator.setup import NUM_EXPERTS, NUM_LAYERS, VOCAB, K, Setup

ENDS = ("stop", "length", "error", "queue_timeout", "timeout")


@dataclass
class Record:
    """A request and all its outputs so far."""

    request: Request
    arrival: int = 0
    token_ids: list[int] = field(default_factory=list)
    prompt_experts: list[list[int]] | None = None
    routing: list[list[list[int]]] = field(default_factory=list)
    embedding: bytes | None = None
    end: str | None = None  # one of ENDS, or "cancelled"
    was_scheduled: bool = False
    turn: int | None = None  # number of the step that admitted it first
    was_passed: bool = False  # by a later request of its tenant


def expected(setup: Setup, max_model_len: int, request: Request) -> tuple[list[int], str]:
    """Return the request's tokens and finish reason according to the oracle."""
    params = request.params
    if request.embedding_len is not None:
        return [], "stop"
    tokens = unended_tokens(setup, max_model_len, request)
    stops = set(params.stop_token_ids) | (set() if params.ignore_eos else set(setup.eos))
    for number, token in enumerate(tokens, 1):
        if token in stops and number > params.min_tokens:
            return tokens[:number], "stop"
    return tokens, "length"


def unended_tokens(setup: Setup, max_model_len: int, request: Request) -> list[int]:
    """Return as many tokens as the request may generate, past those that would end it."""
    prompt = request.prompt_token_ids
    count = min(request.params.max_tokens, max_model_len - len(prompt))
    return oracle(_root(setup, request), prompt, count, setup.window, VOCAB) if count else []


def expected_embedding(setup: Setup, request: Request) -> bytes | None:
    """Return the request's embedding according to the oracle; None if it wants none."""
    if request.embedding_len is None:
        return None
    [token] = oracle(_root(setup, request), request.prompt_token_ids, 1, setup.window, VOCAB)
    return embedding_of(token, request.embedding_len)


def _root(setup: Setup, request: Request) -> int:
    resolved = _resolved(request)
    return mix(0, resolved.experts_per_token or 0) if setup.with_rows else root_of(resolved)


def _resolved(request: Request) -> Request:
    mask = request.expert_mask
    return msgspec.structs.replace(
        request,
        experts_per_token=request.experts_per_token or K,
        expert_mask=None if mask is None or all(map(all, mask)) else mask,
    )


def check_experts(record: Record) -> None:
    """Raise AssertionError unless the reported experts are those of the exact model."""
    request = record.request
    if not request.expert_usage and not request.expert_routing:
        return
    k = request.experts_per_token or K
    tokens = request.prompt_token_ids + record.token_ids
    length = len(request.prompt_token_ids)
    if request.expert_usage and record.prompt_experts is not None:
        counts = [[0] * NUM_EXPERTS for _ in range(NUM_LAYERS)]
        for position in range(length):
            for layer in range(NUM_LAYERS):
                for expert in experts_of(tokens[position], position, layer, k, NUM_EXPERTS):
                    counts[layer][expert] += 1
        assert record.prompt_experts == counts, "the experts of the prompt are counted wrongly"
    if request.expert_routing:
        expected = [
            [experts_of(tokens[p], p, layer, k, NUM_EXPERTS) for layer in range(NUM_LAYERS)]
            for p in range(length, len(tokens) - 1)
        ]
        assert record.routing == expected, "the routing of the completion is wrong"
