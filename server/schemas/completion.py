"""Request model of POST /v1/completions."""

from collections.abc import Mapping
from typing import Annotated, ClassVar

from pydantic import Field, model_validator

from server.errors import ApiError, invalid_value, unsupported_parameter
from server.schemas.generation import HINTS, MAX_LOGPROBS, UNSUPPORTED, GenerationRequest, limit_or_unbounded
from server.schemas.prompts import prompts_up_to
from server.strict_json import JsonValue

MAX_PROMPTS = 128


class CompletionRequest(GenerationRequest):
    """POST /v1/completions."""

    unsupported: ClassVar[Mapping[str, tuple[JsonValue, ...]]] = {
        **UNSUPPORTED,
        "suffix": ("",),
        "tool_choice": ("none", "auto"),
    }
    hints: ClassVar[Mapping[str, str]] = {**HINTS, "suffix": "No served model was trained to fill in text."}
    prompt_field: ClassVar[str] = "prompt"

    prompt: Annotated[list[str] | list[list[int]], prompts_up_to(MAX_PROMPTS)]
    max_tokens: Annotated[Annotated[int, Field(ge=0)] | None, limit_or_unbounded(0)] = 16
    logprobs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS)] | None = None
    echo: bool = False
    best_of: Annotated[int, Field(ge=1)] | None = None
    add_special_tokens: bool = True

    @model_validator(mode="after")
    def _check_completion(self) -> "CompletionRequest":
        if self.max_tokens == 0 and not self.echo:
            message = "'max_tokens' may be 0 only with 'echo': true."
            raise ApiError(message, param="max_tokens", code="integer_below_min_value")
        if self.best_of is not None and self.best_of != self.n:
            raise unsupported_parameter(
                "best_of", "'best_of' must equal 'n': this server generates no choices that it discards."
            )
        if self.best_of is not None and self.best_of > 1 and self.stream:
            raise invalid_value("'best_of' cannot be streamed.", "best_of")
        return self

    @property
    def prompt_texts(self) -> list[str]:
        """The prompts that are texts."""
        return [prompt for prompt in self.prompt if isinstance(prompt, str)]

    @property
    def has_default_limit(self) -> bool:
        return "max_tokens" not in self.model_fields_set

    @property
    def num_logprobs(self) -> int | None:
        return self.logprobs

    @property
    def has_prompt_logprobs(self) -> bool:
        return self.echo and self.logprobs is not None

    @property
    def has_prompt_routing(self) -> bool:
        is_only_scored = self.expert_routing and self.max_tokens == 0
        return self.echo and (self.gate_logits or is_only_scored)
