"""engine/scheduling/request_cost.py: what is charged besides positions."""

from typing import Any

import pytest

from engine.scheduling.request_cost import output_cost, prompt_cost
from engine.token_constraints import token_constraints
from engine.types import Request, SamplingParams

PROMPT = [5] * 32
BIASES = token_constraints(logit_bias=dict.fromkeys(range(1024), 1.0))


def request(params: dict[str, Any], **fields: Any) -> Request:
    return Request(1, PROMPT, SamplingParams(**params), **fields)


@pytest.mark.parametrize(
    ("made", "of_prompt", "of_output"),
    [
        (request({}), 10, 2),
        (request({"num_logprobs": 15}), 10, 2 + 16 // 8),
        (request({"num_logprobs": 7, "prompt_logprobs": True}), 10 + 32 * 8 // 8, 2 + 1),
        (request({"constraints": BIASES}), 10 + 1024 // 256, 2),
        (request({}, grammar="g"), 10, 4),
        (request({}, overhead_tokens=70), 80, 2),
        (request({}, gate_logits=True), 10, 2 + 8),
        (request({}, gate_logits=True, prompt_routing=True), 10 + 8 * 32, 2 + 8),
        (request({}, expert_routing=True, prompt_routing=True), 10, 2),
    ],
)
def test_work_around_the_model_costs_tokens(made: Request, of_prompt: int, of_output: int) -> None:
    assert prompt_cost(made, num_computed=10) == of_prompt
    assert output_cost(made) == of_output
