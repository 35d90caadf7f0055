"""Cost of a request for its tenant, in weighted tokens: positions of the model, and the work around them.

The weights are rough ratios of times on a CPU, and only ratios matter. They must not be measured while serving: the
order of requests would depend on the machine's load.
"""

from engine.types import Request

PROMPT_WEIGHT, OUTPUT_WEIGHT = 1, 2  # per computed prompt token, per generated token
GRAMMAR_WEIGHT = 2  # more per generated token: the mask of the tokens that may follow
GATES_WEIGHT = 8  # more per position whose gate logits are copied, sent and rendered
VALUES_PER_WEIGHT = 8  # log probabilities that are computed, sent and rendered as fast as one prompt token
IDS_PER_WEIGHT = 256  # token ids of constraints, which are sent and packed once


def prompt_cost(request: Request, num_computed: int) -> int:
    """Return the cost until the first token. `num_computed`: prompt tokens that are not in the prefix cache."""
    params = request.params
    num_scored = len(request.prompt_token_ids) if params.prompt_logprobs else 0
    return (
        PROMPT_WEIGHT * num_computed
        + num_scored * _num_values(request) // VALUES_PER_WEIGHT
        + (GATES_WEIGHT * len(request.prompt_token_ids) if request.prompt_routing and request.gate_logits else 0)
        + params.constraints.num_ids // IDS_PER_WEIGHT
        + request.overhead_tokens
    )


def output_cost(request: Request) -> int:
    """Return the cost of each generated token."""
    has_grammar = request.grammar is not None
    extra = GRAMMAR_WEIGHT * has_grammar + GATES_WEIGHT * request.gate_logits
    return OUTPUT_WEIGHT + extra + _num_values(request) // VALUES_PER_WEIGHT


def _num_values(request: Request) -> int:
    """Return the number of log probabilities per position."""
    num_logprobs = request.params.num_logprobs
    return 0 if num_logprobs is None else 1 + num_logprobs
