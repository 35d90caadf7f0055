"""Request models of POST /v1/messages and /v1/messages/count_tokens, Anthropic's Messages, translated to chat."""

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

from pydantic import ConfigDict, Field, JsonValue, model_validator

from server.errors import ApiError, invalid_value
from server.schemas.constraint_spellings import Kind, all_done_by, refused_spellings
from server.schemas.generation import HARMLESS, MAX_STOP_STRINGS, Name, StopString
from server.schemas.messages_api.blocks import Text, Turns
from server.schemas.tools import MAX_TOOLS
from server.schemas.translated import JsonObject, TranslatedRequest
from server.schemas.validation import ConstrainingObject, RequestModel, named_parts

CLIENT_TOOL = "custom"  # the type of a tool that the request itself describes


class Tool(RequestModel):
    """A function that the model may call, or one of Anthropic's own tools, which this server leaves out."""

    type: Name = CLIENT_TOOL
    name: Name | None = None
    description: str | None = None
    input_schema: dict[str, JsonValue] | None = None
    strict: bool | None = None

    @property
    def is_described(self) -> bool:
        """False for tools that Anthropic's servers run, or whose schema their models know."""
        return self.type == CLIENT_TOOL

    @property
    def function(self) -> JsonObject:
        function: JsonObject = {"name": self.name, "parameters": self.input_schema}
        more: JsonObject = {"description": self.description, "strict": self.strict}
        return {
            "type": "function",
            "function": function | {key: item for key, item in more.items() if item is not None},
        }


class ToolChoice(RequestModel):
    """Selects whether the model must call a function, and which one."""

    type: Literal["auto", "any", "none", "tool"]
    name: Name | None = None
    disable_parallel_tool_use: bool = False

    @property
    def choice(self) -> JsonValue:
        """The value of chat's `tool_choice`."""
        if self.type == "tool":
            return {"type": "function", "function": {"name": self.name or ""}}
        return "required" if self.type == "any" else self.type


class Metadata(RequestModel):
    """Metadata of the request."""

    user_id: Name | None = None


class OutputFormat(RequestModel):
    """JSON by a schema: Anthropic's structured output."""

    model_config = ConfigDict(extra="forbid")

    type: Literal["json_schema"]
    json_schema: dict[str, JsonValue] = Field(alias="schema")


class OutputConfig(ConstrainingObject):
    """Options of the output. All but the format have no effect, and are named as unknown fields."""

    path: ClassVar[str] = "output_config"
    constraint_fields: ClassVar[Mapping[Kind, str] | None] = {"format": "format"}

    format: OutputFormat | None = None


class PromptFields(RequestModel):
    """The fields that determine the prompt."""

    unsupported: ClassVar[Mapping[str, tuple[object, ...]]] = {  # type: ignore[assignment]
        "container": (),
        "mcp_servers": ([],),
        **refused_spellings("output_config", "output_format"),
    }
    instead: ClassVar[Mapping[str, str]] = all_done_by(
        "output_config.format", refused_spellings("output_config", "output_format")
    )
    harmless: ClassVar[Mapping[str, tuple[JsonValue, ...]]] = HARMLESS

    turns_field: ClassVar[str | None] = "messages"

    messages: Turns
    system: Text | None = None
    tools: Annotated[list[Tool], Field(max_length=MAX_TOOLS)] = Field(default_factory=list)
    tool_choice: ToolChoice | None = None
    output_config: OutputConfig | None = None
    output_format: OutputFormat | None = None  # the older name of output_config.format, which inspect-ai sends

    @model_validator(mode="after")
    def _check_tools(self) -> "PromptFields":
        for path, tool in self._described_tools.items():
            for field, value in (("name", tool.name), ("input_schema", tool.input_schema)):
                if value is None:
                    param = f"{path}.{field}"
                    raise ApiError(f"'{param}' is required.", param=param, code="missing_required_parameter")
        return self

    @model_validator(mode="after")
    def _check_format(self) -> "PromptFields":
        given = self.output_config.format if self.output_config else None
        if given is not None and self.output_format is not None and given != self.output_format:
            message = "'output_format' and 'output_config.format' differ; send only one of them."
            raise invalid_value(message, "output_format")
        return self

    @property
    def json_format(self) -> OutputFormat | None:
        """The format of the answer, by either name."""
        return self.output_format or (self.output_config.format if self.output_config else None)

    @property
    def _described_tools(self) -> dict[str, Tool]:
        return {f"tools[{index}]": tool for index, tool in enumerate(self.tools) if tool.is_described}

    @property
    def tool_paths(self) -> list[str]:
        """Paths of the chat's tools in this request."""
        return list(self._described_tools)

    @property
    def ignored_parts(self) -> list[str]:
        return named_parts("tools", [tool.type for tool in self.tools if not tool.is_described])

    def prompt_body(self) -> JsonObject:
        """Return the chat's messages and tools. If the last turn is the assistant's, the model continues it."""
        system: list[JsonObject] = []
        blocks = [block.without_billing for block in self.system or []]
        parts: list[JsonValue] = [block.part for block in blocks if block.text]
        if parts:
            system = [{"role": "system", "content": parts}]
        turns = [message for turn in self.messages for message in turn.messages]
        body: JsonObject = {"messages": [*system, *turns]}
        if self.messages[-1].role == "assistant":
            body["continue_final_message"] = True
        tools: list[JsonValue] = [tool.function for tool in self._described_tools.values()]
        if tools:
            body["tools"] = tools
        if self.tool_choice is not None:
            body["tool_choice"] = self.tool_choice.choice
            body["parallel_tool_calls"] = False if self.tool_choice.disable_parallel_tool_use else None
        return body


class CountTokensRequest(PromptFields):
    """POST /v1/messages/count_tokens."""

    model: Name | None = None

    def chat_body(self) -> JsonObject:
        """Return the body of the chat request with this prompt."""
        return {"model": self.model, **self.prompt_body()}


class MessagesRequest(PromptFields, TranslatedRequest):
    """POST /v1/messages."""

    constraint_fields: ClassVar[Mapping[Kind, str] | None] = {
        "format": "output_config.format",
        "limit": "max_tokens",
        "stop": "stop_sequences",
        "tools": "tool_choice",
        "time": "timeout_s",
        "adapter": "model",
    }

    max_tokens: Annotated[int, Field(ge=1)]
    stop_sequences: Annotated[list[StopString], Field(max_length=MAX_STOP_STRINGS)] = Field(default_factory=list)
    metadata: Metadata | None = None

    def chat_body(self) -> JsonObject:
        user = self.metadata.user_id if self.metadata else None
        stop: list[JsonValue] = list(self.stop_sequences)
        more: JsonObject = {"max_tokens": self.max_tokens, "stop": stop, "user": user}
        return {**self.shared_body(), **self.prompt_body(), **self._format_body(), **more}

    def _format_body(self) -> JsonObject:
        if self.json_format is None:
            return {}
        schema: JsonObject = {"schema": self.json_format.json_schema}
        return {"response_format": {"type": "json_schema", "json_schema": schema}}
