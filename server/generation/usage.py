"""What a request asks of the experts, checked; and what it took of them, counted for its usage."""

from collections.abc import Iterable
from typing import TypedDict

from engine.capacity.expert_options import ExpertLayout, resolve_experts
from engine.errors import RequestRejectedError
from engine.messages import Ready
from engine.types import ExpertIds, Request, SamplingParams
from server.errors import ApiError, invalid_value, unsupported_parameter
from server.schemas import GenerationRequest


class ExpertTokens(TypedDict):
    """Part of a reply's usage: [layers][experts] counts over the positions that were computed, each once."""

    prompt: list[list[int]]
    completion: list[list[int]]


def check_experts(request: GenerationRequest, ready: Ready) -> None:
    """Raises ApiError 400 for what this model's experts cannot do."""
    asked = Request(
        0,
        [],
        SamplingParams(),
        experts_per_token=request.experts_per_token,
        expert_mask=request.expert_mask,
        expert_usage=request.expert_usage,
        expert_routing=request.expert_routing,
    )
    shape = ExpertLayout(ready.num_layers, ready.num_experts, ready.experts_per_token)
    try:
        resolve_experts(asked, shape)
    except RequestRejectedError as refusal:
        raise _error(refusal, has_experts=bool(ready.num_experts)) from None


def _error(refusal: RequestRejectedError, *, has_experts: bool) -> ApiError:
    param, message = refusal.param or "", f"'{refusal.param}': {refusal}."
    if not has_experts:
        return unsupported_parameter(param, message)
    if param == "experts_per_token":
        return ApiError(message, param=param, code="integer_above_max_value")
    return invalid_value(message, param)


class ExpertTally:
    """What the choices of one generation took of the experts."""

    def __init__(self, num_layers: int, num_experts: int) -> None:
        self._prompt = [[0] * num_experts for _ in range(num_layers)]
        self._completion = [[0] * num_experts for _ in range(num_layers)]

    def add_prompt(self, counts: Iterable[Iterable[int]]) -> None:
        """[layers][experts], of one prompt."""
        for layer, of_prompt in zip(self._prompt, counts, strict=True):
            layer[:] = map(sum, zip(layer, of_prompt, strict=True))

    def add_completion(self, routing: Iterable[Iterable[ExpertIds]]) -> None:
        """[position][layers][k]."""
        for position in routing:
            for layer, ids in zip(self._completion, position, strict=True):
                for expert in ids:
                    layer[expert] += 1

    def tokens(self) -> ExpertTokens:
        return {"prompt": self._prompt, "completion": self._completion}
