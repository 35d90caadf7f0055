"""Check and complete the expert options of a request: experts per token and expert mask."""

from dataclasses import dataclass

import msgspec

from engine.errors import RequestRejectedError
from engine.types import Request


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
