"""Request models of POST /tokenize and POST /detokenize."""

from collections.abc import Mapping
from functools import cached_property
from typing import ClassVar

from pydantic import Field, model_validator

from server.errors import ApiError
from server.schemas.chat import HINTS_OF_CHAT, INSTEAD_IN_CHAT, UNSUPPORTED_IN_CHAT
from server.schemas.conversation import ChatTemplateKwargs, Conversation, Turns
from server.schemas.generation import HARMLESS, Name
from server.schemas.tools import Tools, check_tools
from server.schemas.validation import RequestModel
from server.strict_json import JsonValue


class TokenizeRequest(RequestModel):
    """POST /tokenize: a prompt, or a conversation, which is rendered first."""

    unsupported: ClassVar[Mapping[str, tuple[JsonValue, ...]]] = UNSUPPORTED_IN_CHAT
    instead: ClassVar[Mapping[str, str]] = INSTEAD_IN_CHAT
    harmless: ClassVar[Mapping[str, tuple[JsonValue, ...]]] = HARMLESS
    hints: ClassVar[Mapping[str, str]] = HINTS_OF_CHAT
    turns_field: ClassVar[str | None] = "messages"

    model: Name | None = None
    prompt: str | None = None
    add_special_tokens: bool = True
    messages: Turns | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool = False
    chat_template_kwargs: ChatTemplateKwargs = Field(default_factory=ChatTemplateKwargs)
    tools: Tools = Field(default_factory=list)
    return_token_strs: bool = False

    @model_validator(mode="after")
    def _check_tokenize(self) -> "TokenizeRequest":
        if (self.prompt is None) == (self.messages is None):
            message = "Send either 'prompt' or 'messages'."
            raise ApiError(message, param="prompt", code="missing_required_parameter")
        check_tools(self.tools, None)
        self.conversation  # noqa: B018 (checks the rules between the fields of the messages)
        return self

    @cached_property
    def conversation(self) -> Conversation | None:
        """The conversation, or None for a prompt."""
        if self.messages is None:
            return None
        return Conversation(
            messages=self.messages,
            add_generation_prompt=self.add_generation_prompt,
            continue_final_message=self.continue_final_message,
            chat_template_kwargs=self.chat_template_kwargs,
            tools=self.tools,
        )


class DetokenizeRequest(RequestModel):
    """POST /detokenize."""

    harmless: ClassVar[Mapping[str, tuple[JsonValue, ...]]] = HARMLESS

    model: Name | None = None
    tokens: list[int]
    skip_special_tokens: bool = False

    @model_validator(mode="after")
    def _check_detokenize(self) -> "DetokenizeRequest":
        if self.tokens and min(self.tokens) < 0:
            raise ApiError("'tokens' must be token ids.", param="tokens", code="integer_below_min_value")
        return self
