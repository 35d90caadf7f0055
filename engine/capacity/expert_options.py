"""Check and complete the expert options of a request: experts per token and expert mask."""

from dataclasses import dataclass

import msgspec

from engine.errors import RequestRejectedError
from engine.types import Request


@dataclass(frozen=True, slots=True)
class ExpertLayout:
    """Experts of a network; num_experts is 0 if it has none."""

    num_layers: int
    num_experts: int
    experts_per_token: int  # default of requests without their own


def resolve_experts(request: Request, layout: ExpertLayout) -> Request:
    """Return the request with its effective k, and without a mask that enables all experts: requests that compute the
    same share their cached prefixes.

    Raises RequestRejectedError, which names the field at fault.
    """
    if not layout.num_experts:
        return _without_experts(request)
    k = layout.experts_per_token if request.experts_per_token is None else request.experts_per_token
    if not 1 <= k <= layout.num_experts:
        message = f"this model has {layout.num_experts} experts: a token takes 1 to {layout.num_experts} of them"
        raise RequestRejectedError(message, "experts_per_token")
    mask = request.expert_mask
    if mask is not None:
        _check_mask(mask, k, layout)
        if all(map(all, mask)):
            mask = None
    return msgspec.structs.replace(request, experts_per_token=k, expert_mask=mask)


def _without_experts(request: Request) -> Request:
    for field in ("experts_per_token", "expert_mask", "expert_usage", "expert_routing", "gate_logits"):
        if getattr(request, field) not in (None, False):
            raise RequestRejectedError("this model has no experts", field)
    return request


def _check_mask(mask: list[list[bool]], k: int, layout: ExpertLayout) -> None:
    if len(mask) != layout.num_layers or any(len(layer) != layout.num_experts for layer in mask):
        message = f"the mask must have {layout.num_layers} layers of {layout.num_experts} experts"
        raise RequestRejectedError(message, "expert_mask")
    for index, layer in enumerate(mask):
        if sum(layer) < k:
            message = f"the mask enables {sum(layer)} experts in layer {index}; {k} per token are needed"
            raise RequestRejectedError(message, "expert_mask")
