"""Request models of POST /v1/messages and /v1/messages/count_tokens, Anthropic's Messages, translated to chat."""

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

import orjson
from pydantic import BeforeValidator, Field, JsonValue

from server.schemas.conversation import MAX_MESSAGES
from server.schemas.generation import MAX_STOP_STRINGS, Name, StopString
from server.schemas.tools import MAX_TOOLS
from server.schemas.translated import JsonObject, TranslatedRequest
from server.schemas.validation import RequestModel, check_length, text_or_list


def _as_blocks(value: object) -> object:
    return text_or_list(value, lambda text: {"type": "text", "text": text})


class TextBlock(RequestModel):
    """A block of text."""

    type: Literal["text"]
    text: str

    @property
    def part(self) -> JsonObject:
        return {"type": "text", "text": self.text}


TextBlocks = Annotated[list[TextBlock], Field(min_length=1)]
Text = Annotated[
    list[TextBlock],
    Field(min_length=1),
    BeforeValidator(_as_blocks, json_schema_input_type=str | TextBlocks),
]


class ToolUseBlock(RequestModel):
    """A tool call of the assistant."""

    type: Literal["tool_use"]
    id: Name
    name: Name
    input: dict[str, JsonValue]

    @property
    def call(self) -> JsonObject:
        arguments = orjson.dumps(self.input).decode()
        return {"id": self.id, "type": "function", "function": {"name": self.name, "arguments": arguments}}


class ToolResultBlock(RequestModel):
    """The result of a tool call."""

    type: Literal["tool_result"]
    tool_use_id: Name
    content: Annotated[list[TextBlock], BeforeValidator(_as_blocks, json_schema_input_type=str | list[TextBlock])] = (
        Field(default_factory=list)
    )

    @property
    def message(self) -> JsonObject:
        text = "\n".join(block.text for block in self.content)
        return {"role": "tool", "tool_call_id": self.tool_use_id, "content": text}


Block = Annotated[TextBlock | ToolUseBlock | ToolResultBlock, Field(discriminator="type")]
NonemptyBlocks = Annotated[list[Block], Field(min_length=1)]
Blocks = Annotated[
    list[Block],
    Field(min_length=1),
    BeforeValidator(_as_blocks, json_schema_input_type=str | NonemptyBlocks),
]


class Turn(RequestModel):
    """One turn of the conversation."""

    role: Literal["user", "assistant"]
    content: Blocks

    @property
    def messages(self) -> list[JsonObject]:
        """The turn as chat messages: results of calls become separate messages before the user's text."""
        results = [block.message for block in self.content if isinstance(block, ToolResultBlock)]
        parts: list[JsonValue] = [block.part for block in self.content if isinstance(block, TextBlock)]
        calls: list[JsonValue] = [block.call for block in self.content if isinstance(block, ToolUseBlock)]
        if not parts and not calls:
            return results
        message: JsonObject = {"role": self.role, "content": parts or ""}
        return [*results, message | {"tool_calls": calls} if calls else message]


def _check_num_turns(value: object) -> object:
    if isinstance(value, list):
        check_length(value, MAX_MESSAGES)
    return value


SeveralTurns = Annotated[list[Turn], Field(min_length=1, max_length=MAX_MESSAGES)]
Turns = Annotated[SeveralTurns, BeforeValidator(_check_num_turns, json_schema_input_type=SeveralTurns)]


class Tool(RequestModel):
    """A function that the model may call."""

    name: Name
    description: str | None = None
    input_schema: dict[str, JsonValue]

    @property
    def function(self) -> JsonObject:
        function: JsonObject = {"name": self.name, "parameters": self.input_schema}
        more: JsonObject = {} if self.description is None else {"description": self.description}
        return {"type": "function", "function": function | more}


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


class PromptFields(RequestModel):
    """The fields that determine the prompt."""

    unsupported: ClassVar[Mapping[str, tuple[object, ...]]] = {  # type: ignore[assignment]
        "container": (),
        "context_management": (),
        "mcp_servers": ([],),
        "thinking": ({"type": "disabled"},),
    }

    messages: Turns
    system: Text | None = None
    tools: Annotated[list[Tool], Field(max_length=MAX_TOOLS)] = Field(default_factory=list)
    tool_choice: ToolChoice | None = None

    def prompt_body(self) -> JsonObject:
        """Return the chat's messages and tools. If the last turn is the assistant's, the model continues it."""
        system: list[JsonObject] = []
        if self.system is not None:
            system = [{"role": "system", "content": [block.part for block in self.system]}]
        turns = [message for turn in self.messages for message in turn.messages]
        body: JsonObject = {"messages": [*system, *turns]}
        if self.messages[-1].role == "assistant":
            body["continue_final_message"] = True
        if self.tools:
            body["tools"] = [tool.function for tool in self.tools]
        if self.tool_choice is not None:
            body["tool_choice"] = self.tool_choice.choice
            body["parallel_tool_calls"] = False if self.tool_choice.disable_parallel_tool_use else None
        return body


class CountTokensRequest(PromptFields):
    """POST /v1/messages/count_tokens."""

    model: Name

    def chat_body(self) -> JsonObject:
        """Return the body of the chat request with this prompt."""
        return {"model": self.model, **self.prompt_body()}


class MessagesRequest(TranslatedRequest, PromptFields):
    """POST /v1/messages."""

    max_tokens: Annotated[int, Field(ge=1)]
    stop_sequences: Annotated[list[StopString], Field(max_length=MAX_STOP_STRINGS)] = Field(default_factory=list)
    metadata: Metadata | None = None

    def chat_body(self) -> JsonObject:
        user = self.metadata.user_id if self.metadata else None
        stop: list[JsonValue] = list(self.stop_sequences)
        return {**self.shared_body(), **self.prompt_body(), "max_tokens": self.max_tokens, "stop": stop, "user": user}
