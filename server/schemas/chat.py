"""Request model of POST /v1/chat/completions."""

from collections.abc import Mapping
from typing import Annotated, ClassVar

from pydantic import Field, model_validator

from server.errors import invalid_value
from server.schemas.conversation import Conversation
from server.schemas.generation import HINTS, MAX_LOGPROBS, UNSUPPORTED, GenerationRequest, limit_or_unbounded
from server.schemas.prediction import Prediction
from server.schemas.tools import ToolChoiceParam, check_tools
from server.strict_json import JsonValue

UNSUPPORTED_IN_CHAT: Mapping[str, tuple[JsonValue, ...]] = {
    "audio": (),
    "best_of": (1,),
    "chat_template": (),
    "functions": ([],),
    "modalities": (["text"],),
    "web_search_options": (),
}
INSTEAD_IN_CHAT = {"functions": "tools"}
HINTS_OF_CHAT = {
    "audio": "The model writes text only.",
    "best_of": "Send 'n' to get several choices.",
    "chat_template": "Start the server with --chat-template FILE to use another one.",
    "modalities": "The model writes text only.",
    "web_search_options": "The server searches nothing; describe a search of your own in 'tools'.",
}


class ChatCompletionRequest(GenerationRequest, Conversation):
    """POST /v1/chat/completions."""

    unsupported: ClassVar[Mapping[str, tuple[JsonValue, ...]]] = {**UNSUPPORTED, **UNSUPPORTED_IN_CHAT}
    instead: ClassVar[Mapping[str, str]] = {**GenerationRequest.instead, **INSTEAD_IN_CHAT}
    hints: ClassVar[Mapping[str, str]] = {
        **HINTS,
        **HINTS_OF_CHAT,
        "logprobs": "It is true or false; the number of alternatives goes into 'top_logprobs'.",
    }
    prompt_field: ClassVar[str] = "messages"

    max_tokens: Annotated[Annotated[int, Field(ge=1)] | None, limit_or_unbounded(1)] = None
    max_completion_tokens: Annotated[Annotated[int, Field(ge=1)] | None, limit_or_unbounded(1)] = None
    logprobs: bool = False
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS)] | None = None
    tool_choice: ToolChoiceParam | None = None
    parallel_tool_calls: bool = True
    prediction: Prediction | None = None

    @model_validator(mode="after")
    def _check_chat(self) -> "ChatCompletionRequest":
        if self.top_logprobs and not self.logprobs:
            raise invalid_value("'top_logprobs' requires 'logprobs': true.", "top_logprobs")
        limits = {limit for limit in (self.max_tokens, self.max_completion_tokens) if limit is not None}
        if len(limits) > 1:
            message = "'max_tokens' and 'max_completion_tokens' differ; send only one of them."
            raise invalid_value(message, "max_completion_tokens")
        check_tools(self.tools, self.tool_choice)
        return self

    @property
    def prompt_texts(self) -> list[str]:
        return self.contents

    @property
    def raw_prompt(self) -> str | None:
        """The prompt, where no template is to render it."""
        return None

    @property
    def completion_limit(self) -> int | None:
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens

    @property
    def limit_field(self) -> str:
        return "max_tokens" if self.max_completion_tokens is None else "max_completion_tokens"

    @property
    def num_logprobs(self) -> int | None:
        return (self.top_logprobs or 0) if self.logprobs else None
