"""Request model of POST /v1/responses, OpenAI's Responses, translated to chat. The server stores no responses."""

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal, Self

from pydantic import ConfigDict, Field, JsonValue, model_validator

from server.errors import invalid_value
from server.schemas.constraint_spellings import Kind, all_done_by, refused_spellings
from server.schemas.generation import MAX_LOGPROBS, Name
from server.schemas.responses_api.items import Items, MessageItem
from server.schemas.responses_api.tools import Callee, HostedTool, Tool, ToolChoiceParam, callees
from server.schemas.tools import MAX_TOOLS
from server.schemas.translated import JsonObject, TruncatableRequest
from server.schemas.validation import ConstrainingObject, RequestModel, named_parts

MAX_INCLUDED = 16
MAX_METADATA = 16
LOGPROBS = "message.output_text.logprobs"
KNOWN_PARTS = frozenset(
    {LOGPROBS, "reasoning.encrypted_content"}
)  # the model has no reasoning, so that none is left out


class TextFormat(RequestModel):
    """The required format of the text. Unknown fields are rejected: they could be constraints."""

    model_config = ConfigDict(extra="forbid")

    type: Literal["text", "json_object", "json_schema"]
    name: Name | None = None
    json_schema: dict[str, JsonValue] | None = Field(None, alias="schema")
    strict: bool | None = None
    description: str | None = None

    @property
    def response_format(self) -> JsonObject:
        """The value of chat's `response_format`."""
        if self.type != "json_schema":
            return {"type": self.type}
        schema: JsonObject = {"name": self.name, "schema": self.json_schema, "strict": self.strict}
        return {"type": "json_schema", "json_schema": schema}


NOTHING_STORED = "Nothing is stored between requests: send all turns in 'input'."


class TextConfig(ConstrainingObject):
    """Options of the text output."""

    path: ClassVar[str] = "text"
    constraint_fields: ClassVar[Mapping[Kind, str] | None] = {"format": "format"}

    format: TextFormat | None = None


class ResponsesRequest(TruncatableRequest):
    """POST /v1/responses."""

    unsupported: ClassVar[Mapping[str, tuple[object, ...]]] = {  # type: ignore[assignment]
        "background": (False,),
        "conversation": (),
        "max_tool_calls": (),
        "previous_response_id": (),
        "prompt": (),
        **refused_spellings(),
    }
    instead: ClassVar[Mapping[str, str]] = all_done_by("text.format", refused_spellings())
    hints: ClassVar[Mapping[str, str]] = {
        "background": "The reply comes with the response, whole or streamed.",
        "conversation": NOTHING_STORED,
        "previous_response_id": NOTHING_STORED,
        "prompt": "No prompts are stored: send 'instructions' and 'input'.",
    }
    constraint_fields: ClassVar[Mapping[Kind, str] | None] = {
        "format": "text.format",
        "limit": "max_output_tokens",
        "tools": "tool_choice",
        "time": "timeout_s",
        "adapter": "model",
    }

    turns_field: ClassVar[str | None] = "input"

    input: Items
    instructions: str | None = None
    max_output_tokens: Annotated[int, Field(ge=1)] | None = None
    text: TextConfig | None = None
    tools: Annotated[list[Tool], Field(max_length=MAX_TOOLS)] = Field(default_factory=list)
    tool_choice: ToolChoiceParam | None = None
    parallel_tool_calls: bool | None = None
    metadata: Annotated[
        dict[Annotated[str, Field(max_length=64)], Annotated[str, Field(max_length=512)]],
        Field(max_length=MAX_METADATA),
    ] = Field(default_factory=dict)
    user: Name | None = None
    include: Annotated[list[Name], Field(max_length=MAX_INCLUDED)] = Field(default_factory=list)
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS)] | None = None
    truncation: Literal["auto", "disabled"] = "disabled"

    @model_validator(mode="after")
    def _check_responses(self) -> "ResponsesRequest":
        if self.top_logprobs and not self.has_logprobs:
            raise invalid_value(f"'top_logprobs' requires '{LOGPROBS}' in 'include'.", "top_logprobs")
        return self

    @classmethod
    def cuts_turns(cls, body: Mapping[str, JsonValue]) -> bool:
        return body.get("truncation") == "auto"

    @property
    def may_be_cut(self) -> bool:
        return self.truncation == "auto"

    def turn_starts(self) -> list[int]:
        return [i for i, item in enumerate(self.input) if isinstance(item, MessageItem) and item.role == "user"]

    def without_turns(self, start: int) -> Self:
        kept = [
            item
            for item in self.input[:start]
            if isinstance(item, MessageItem) and item.role in ("system", "developer")
        ]
        return self.model_copy(update={"input": [*kept, *self.input[start:]]})

    @property
    def has_logprobs(self) -> bool:
        """True if the reply has logprobs of its text."""
        return LOGPROBS in self.include

    @property
    def callees(self) -> list[Callee]:
        """The tools that the model may call."""
        return list(callees(self.tools))

    @property
    def tool_paths(self) -> list[str]:
        return [callee.path for callee in self.callees]

    @property
    def ignored_parts(self) -> list[str]:
        hosted = named_parts("tools", [tool.type for tool in self.tools if isinstance(tool, HostedTool)])
        return [*hosted, *named_parts("include", set(self.include) - KNOWN_PARTS)]

    def chat_body(self) -> JsonObject:
        messages: list[JsonObject] = []
        if self.instructions is not None:
            messages.append({"role": "system", "content": self.instructions})
        for item in self.input:
            item.add_to(messages)
        format_ = self.text.format if self.text else None
        return {
            **self.shared_body(),
            "messages": list(messages),
            "max_completion_tokens": self.max_output_tokens,
            "response_format": format_.response_format if format_ else None,
            "tools": [callee.tool.function(callee.namespace) for callee in self.callees] or None,
            "tool_choice": self.tool_choice.choice if self.tool_choice else None,
            "parallel_tool_calls": self.parallel_tool_calls,
            "user": self.user,
            "logprobs": self.has_logprobs,
            "top_logprobs": self.top_logprobs if self.has_logprobs else None,
        }
