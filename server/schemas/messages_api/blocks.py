"""Content blocks and turns of Anthropic's Messages, and the chat messages that they become."""

from typing import Annotated, Literal

import orjson
from pydantic import BeforeValidator, Field, JsonValue

from server.schemas.conversation import MAX_MESSAGES
from server.schemas.generation import Name
from server.schemas.translated import JsonObject
from server.schemas.validation import RequestModel, check_length, text_or_list

BILLING_HEADER = "x-anthropic-billing-header:"  # starts a line of Claude Code's system text


def _as_blocks(value: object) -> object:
    return text_or_list(value, lambda text: {"type": "text", "text": text})


class TextBlock(RequestModel):
    """A block of text."""

    type: Literal["text"]
    text: str

    @property
    def part(self) -> JsonObject:
        return {"type": "text", "text": self.text}

    @property
    def without_billing(self) -> "TextBlock":
        """The block without Claude Code's billing line, which changes with each request: no prefix would be found."""
        lines = self.text.split("\n")
        kept = [line for line in lines if not line.startswith(BILLING_HEADER)]
        return self if len(kept) == len(lines) else TextBlock(type="text", text="\n".join(kept).strip("\n"))


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


class ThinkingBlock(RequestModel):
    """Reasoning of another model in an earlier turn. It is left out of the prompt; its fields count as unknown."""

    type: Literal["thinking", "redacted_thinking"]


Block = Annotated[TextBlock | ToolUseBlock | ToolResultBlock | ThinkingBlock, Field(discriminator="type")]
NonemptyBlocks = Annotated[list[Block], Field(min_length=1)]
Blocks = Annotated[
    list[Block],
    Field(min_length=1),
    BeforeValidator(_as_blocks, json_schema_input_type=str | NonemptyBlocks),
]


class Turn(RequestModel):
    """One turn of the conversation."""

    role: Literal["user", "assistant", "system"]
    content: Blocks

    @property
    def messages(self) -> list[JsonObject]:
        """The turn as chat messages: results of calls become separate messages before the user's text.

        Thinking is left out; a turn of nothing else is an empty turn of the assistant.
        """
        results = [block.message for block in self.content if isinstance(block, ToolResultBlock)]
        parts: list[JsonValue] = [block.part for block in self.content if isinstance(block, TextBlock)]
        calls: list[JsonValue] = [block.call for block in self.content if isinstance(block, ToolUseBlock)]
        if not parts and not calls and (results or self.role != "assistant"):
            return results
        message: JsonObject = {"role": self.role, "content": parts or ""}
        return [*results, message | {"tool_calls": calls} if calls else message]


def _check_num_turns(value: object) -> object:
    if isinstance(value, list):
        check_length(value, MAX_MESSAGES)
    return value


SeveralTurns = Annotated[list[Turn], Field(min_length=1, max_length=MAX_MESSAGES)]
Turns = Annotated[SeveralTurns, BeforeValidator(_check_num_turns, json_schema_input_type=SeveralTurns)]
