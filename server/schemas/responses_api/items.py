"""Input items of OpenAI's Responses, and the chat messages that they become."""

from typing import Annotated, Literal

import orjson
from pydantic import BeforeValidator, Field, JsonValue

from server.schemas.conversation import MAX_MESSAGES
from server.schemas.generation import Name
from server.schemas.responses_api.tools import CUSTOM_INPUT, chat_name
from server.schemas.translated import JsonObject
from server.schemas.validation import RequestModel, check_length, text_or_list


class Part(RequestModel):
    """A piece of text, from the user or from the model."""

    type: Literal["input_text", "output_text"]
    text: str


def _as_parts(value: object) -> object:
    return text_or_list(value, lambda text: {"type": "input_text", "text": text})


Parts = Annotated[
    list[Part],
    Field(min_length=1),
    BeforeValidator(_as_parts, json_schema_input_type=str | Annotated[list[Part], Field(min_length=1)]),
]


class MessageItem(RequestModel):
    """A message of the conversation."""

    type: Literal["message"] = "message"
    role: Literal["user", "assistant", "system", "developer"]
    content: Parts

    def add_to(self, messages: list[JsonObject]) -> None:
        parts: list[JsonValue] = [{"type": "text", "text": part.text} for part in self.content]
        messages.append({"role": self.role, "content": parts})


class FunctionCallItem(RequestModel):
    """A function call of the assistant. It becomes part of the assistant's message before it."""

    type: Literal["function_call"]
    call_id: Name
    name: Name
    namespace: Name | None = None
    arguments: str

    def add_to(self, messages: list[JsonObject]) -> None:
        _add_call(messages, self.call_id, chat_name(self.name, self.namespace), self.arguments)


class CustomCallItem(RequestModel):
    """A call of a custom tool, whose input is any text."""

    type: Literal["custom_tool_call"]
    call_id: Name
    name: Name
    namespace: Name | None = None
    input: str

    def add_to(self, messages: list[JsonObject]) -> None:
        arguments = orjson.dumps({CUSTOM_INPUT: self.input}).decode()
        _add_call(messages, self.call_id, chat_name(self.name, self.namespace), arguments)


def _add_call(messages: list[JsonObject], call_id: str, name: str, arguments: str) -> None:
    call: JsonObject = {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}
    if not messages or messages[-1]["role"] != "assistant":
        messages.append({"role": "assistant", "content": ""})
    calls = messages[-1].setdefault("tool_calls", [])
    assert isinstance(calls, list)
    calls.append(call)


class ReasoningItem(RequestModel):
    """Reasoning of another model in an earlier turn. It is left out of the prompt; its fields count as unknown."""

    type: Literal["reasoning"]

    def add_to(self, messages: list[JsonObject]) -> None:
        """Add nothing."""


class CallOutputItem(RequestModel):
    """The result of a call."""

    type: Literal["function_call_output", "custom_tool_call_output"]
    call_id: Name
    output: Annotated[list[Part], BeforeValidator(_as_parts, json_schema_input_type=str | list[Part])]

    def add_to(self, messages: list[JsonObject]) -> None:
        text = "\n".join(part.text for part in self.output)
        messages.append({"role": "tool", "tool_call_id": self.call_id, "content": text})


AnyItem = MessageItem | FunctionCallItem | CustomCallItem | CallOutputItem | ReasoningItem
Item = Annotated[AnyItem, Field(discriminator="type")]

Several = Field(min_length=1, max_length=MAX_MESSAGES)


def _as_items(value: object) -> object:
    """Turn a text into one message of the user, and give items without a type the type "message"."""
    items = text_or_list(value, lambda text: {"type": "message", "role": "user", "content": text})
    assert isinstance(items, list)
    check_length(items, MAX_MESSAGES)
    return [_typed(item) if isinstance(item, dict) and "role" in item else item for item in items]


def _typed(item: dict[str, object]) -> dict[str, object]:
    return {**item, "type": "message"} if item.get("type") is None else item


Items = Annotated[
    list[Item],
    Several,
    BeforeValidator(_as_items, json_schema_input_type=str | Annotated[list[AnyItem], Several]),
]
