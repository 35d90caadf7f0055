"""Token usage of one generation, including the tokens that each expert computed."""

from collections.abc import Iterable
from typing import NotRequired, TypedDict

from engine.types import ExpertIds


class ExpertTokens(TypedDict):
    """Part of Usage: [layers][experts] counts over the positions that were computed, each position once."""

    prompt: list[list[int]]
    completion: list[list[int]]


class PromptTokensDetails(TypedDict):
    """Part of Usage."""

    cached_tokens: int


class CompletionTokensDetails(TypedDict):
    """Part of Usage: tokens of the request's `prediction` that its completions have, and those that they have not."""

    accepted_prediction_tokens: int
    rejected_prediction_tokens: int


class Usage(TypedDict):
    """Tokens of one generation. Each prompt counts once, whatever `n` is."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails
    completion_tokens_details: NotRequired[CompletionTokensDetails]  # with a prediction, at the end of the generation
    expert_tokens: NotRequired[ExpertTokens]  # if requested, at the end of the generation


def count_usage(*, num_prompt: int, num_cached: int, num_completion: int) -> Usage:
    """Return the usage without expert tokens. `num_cached`: prompt tokens from the prefix cache."""
    return {
        "prompt_tokens": num_prompt,
        "completion_tokens": num_completion,
        "total_tokens": num_prompt + num_completion,
        "prompt_tokens_details": {"cached_tokens": num_cached},
    }


def expert_tokens(usage: Usage) -> dict[str, ExpertTokens]:
    """Return the `expert_tokens` member, if present, for the usage object of another API."""
    return {"expert_tokens": usage["expert_tokens"]} if "expert_tokens" in usage else {}


class ExpertTally:
    """Counts the tokens that each expert computed, over the choices of one generation."""

    def __init__(self, num_layers: int, num_experts: int) -> None:
        self._prompt = [[0] * num_experts for _ in range(num_layers)]
        self._completion = [[0] * num_experts for _ in range(num_layers)]

    def add_prompt(self, counts: Iterable[Iterable[int]]) -> None:
        """Add the counts of one prompt, [layers][experts]."""
        for layer, of_prompt in zip(self._prompt, counts, strict=True):
            layer[:] = map(sum, zip(layer, of_prompt, strict=True))

    def add_completion(self, routing: Iterable[Iterable[ExpertIds]]) -> None:
        """Add generated tokens by their expert ids, [position][layers][k]."""
        for position in routing:
            for layer, ids in zip(self._completion, position, strict=True):
                for expert in ids:
                    layer[expert] += 1

    def tokens(self) -> ExpertTokens:
        return {"prompt": self._prompt, "completion": self._completion}
