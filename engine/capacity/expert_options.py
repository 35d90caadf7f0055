"""What a request may ask of the experts, and what it is told of them.

Letters: L layers, E experts, k experts per token.
"""

from collections import Counter
from dataclasses import dataclass
from itertools import chain

import msgspec

from engine.errors import RequestRejectedError
from engine.types import ExpertIds, Request

ExpertChoices = list[list[ExpertIds]]  # [L][rows][k] of consecutive positions of one request


@dataclass(frozen=True, slots=True)
class ExpertLayout:
    """A network's experts. num_experts 0: it has none."""

    num_layers: int
    num_experts: int
    experts_per_token: int  # of requests that name no number


def resolve_experts(request: Request, shape: ExpertLayout) -> Request:
    """The request with its effective k, and no mask where all experts are on: so that equal work has equal names.

    Raises RequestRejectedError, with the field at fault.
    """
    if not shape.num_experts:
        return _without_experts(request)
    k = shape.experts_per_token if request.experts_per_token is None else request.experts_per_token
    if not 1 <= k <= shape.num_experts:
        message = f"this model has {shape.num_experts} experts: a token takes 1 to {shape.num_experts} of them"
        raise RequestRejectedError(message, "experts_per_token")
    mask = request.expert_mask
    if mask is not None:
        _check_mask(mask, k, shape)
        if all(map(all, mask)):
            mask = None
    return msgspec.structs.replace(request, experts_per_token=k, expert_mask=mask)


def _without_experts(request: Request) -> Request:
    for field in ("experts_per_token", "expert_mask", "expert_usage", "expert_routing"):
        if getattr(request, field) not in (None, False):
            raise RequestRejectedError("this model has no experts", field)
    return request


def _check_mask(mask: list[list[bool]], k: int, shape: ExpertLayout) -> None:
    if len(mask) != shape.num_layers or any(len(layer) != shape.num_experts for layer in mask):
        message = f"the mask must have {shape.num_layers} layers of {shape.num_experts} experts"
        raise RequestRejectedError(message, "expert_mask")
    for index, layer in enumerate(mask):
        if sum(layer) < k:
            message = f"layer {index} has {sum(layer)} experts on; {k} per token are asked for"
            raise RequestRejectedError(message, "expert_mask")


class ExpertUsage:
    """The experts that one request's positions took, each position once, however often it is computed."""

    def __init__(self, request: Request, num_experts: int) -> None:
        self._num_experts = num_experts
        self._wants_routing = request.expert_routing
        self._num_prompt_tokens = len(request.prompt_token_ids)
        self._num_seen = 0
        self._of_prompt: list[Counter[int]] = []  # L of them
        self._untold: list[list[ExpertIds]] = []

    def take(self, start: int, choices: ExpertChoices) -> None:
        """Of positions start, start + 1, ...; those that were seen before are passed over."""
        end = start + len(choices[0])
        first, split = max(start, self._num_seen), max(start, min(self._num_prompt_tokens, end))
        self._of_prompt = self._of_prompt or [Counter() for _ in choices]
        for counts, layer in zip(self._of_prompt, choices, strict=True):
            counts.update(chain.from_iterable(layer[first - start : split - start]))
        if self._wants_routing:
            completion = slice(max(first, split) - start, None)
            self._untold += map(list, zip(*(layer[completion] for layer in choices), strict=True))
        self._num_seen = max(self._num_seen, end)

    def prompt_tokens(self) -> list[list[int]]:
        """[L][E]: how many of the prompt's positions took which expert."""
        return [[counts[expert] for expert in range(self._num_experts)] for counts in self._of_prompt]

    def told(self) -> list[list[ExpertIds]]:
        """[position][L][k], of the completion's positions computed since the last call."""
        untold, self._untold = self._untold, []
        return untold
