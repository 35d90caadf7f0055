"""Expert options of a request are checked against the network and completed."""

from typing import Any

import pytest

from engine.capacity.expert_options import ExpertLayout, resolve_experts
from engine.errors import RequestRejectedError
from engine.types import Request, SamplingParams

SOME = ExpertLayout(num_layers=2, num_experts=4, experts_per_token=2)
NONE = ExpertLayout(num_layers=2, num_experts=0, experts_per_token=0)


@pytest.mark.parametrize(
    ("layout", "fields", "param"),
    [
        (SOME, {"experts_per_token": 0}, "experts_per_token"),
        (SOME, {"experts_per_token": 5}, "experts_per_token"),
        (SOME, {"expert_mask": []}, "expert_mask"),
        (SOME, {"expert_mask": [[True] * 4]}, "expert_mask"),
        (SOME, {"expert_mask": [[True] * 4, [True] * 5]}, "expert_mask"),
        (SOME, {"expert_mask": [[True] * 4, [True, False, False, False]]}, "expert_mask"),
        (SOME, {"expert_mask": [[True, True, False, True]] * 2, "experts_per_token": 4}, "expert_mask"),
        (NONE, {"experts_per_token": 1}, "experts_per_token"),
        (NONE, {"expert_mask": [[], []]}, "expert_mask"),
        (NONE, {"expert_usage": True}, "expert_usage"),
        (NONE, {"expert_routing": True}, "expert_routing"),
        (NONE, {"gate_logits": True}, "gate_logits"),
    ],
)
def test_options_that_the_network_lacks_are_rejected_with_their_field(
    layout: ExpertLayout, fields: dict[str, Any], param: str
) -> None:
    with pytest.raises(RequestRejectedError) as rejection:
        resolve_experts(Request(1, [5], SamplingParams(), **fields), layout)
    assert rejection.value.param == param


def test_the_default_k_is_filled_in_and_a_mask_of_all_experts_is_dropped() -> None:
    plain = Request(1, [5], SamplingParams())
    all_on = Request(1, [5], SamplingParams(), experts_per_token=2, expert_mask=[[True] * 4] * 2)
    assert resolve_experts(plain, SOME) == resolve_experts(all_on, SOME)
    one_off = Request(1, [5], SamplingParams(), expert_mask=[[True] * 4, [False, True, True, True]])
    assert resolve_experts(one_off, SOME).expert_mask == one_off.expert_mask
    assert resolve_experts(plain, NONE) == plain
