"""Conversations: their messages, and how the rendered conversation ends."""

from collections.abc import Container, Mapping
from functools import cached_property
from typing import Annotated, ClassVar, Literal

from pydantic import BeforeValidator, ConfigDict, Field, model_validator
from pydantic.json_schema import JsonSchemaValue

from server.chat.turns import Call, Turn
from server.errors import ApiError, invalid_value, unsupported_parameter
from server.schemas.tool_calls import MAX_CALLS, MAX_ID_CHARS, ToolCall, check_calls, with_whole_calls
from server.schemas.tools import Tools
from server.schemas.validation import RequestModel, check_length, reject_unsupported_members, text_or_list
from server.strict_json import JsonValue

MAX_MESSAGES = 10_000
MAX_KWARG_CHARS = 64


TEXT_PART: JsonSchemaValue = {
    "required": ["type", "text"],
    "properties": {"type": {"const": "text"}, "text": {"type": "string"}},
}


class TextPart(RequestModel):
    """One part of a message's content. Only parts of type "text" are supported."""

    type: str
    text: str | None = None

    model_config = ConfigDict(json_schema_extra=TEXT_PART)


def _as_parts(value: object) -> object:
    return text_or_list(value, lambda text: {"type": "text", "text": text})


NonemptyParts = Annotated[list[TextPart], Field(min_length=1)]


CONTENT: JsonSchemaValue = {"anyOf": [{"type": "string"}, {"type": "array"}]}
NO_CALL_ID: JsonSchemaValue = {"tool_call_id": {"type": "null"}}
NO_CALLS: JsonSchemaValue = {"tool_calls": {"enum": [[], None]}}
ROLES: JsonSchemaValue = {  # the fields that each role requires and excludes
    "anyOf": [
        {
            "properties": {
                "role": {"enum": ["system", "developer", "user"]},
                "content": CONTENT,
                **NO_CALL_ID,
                **NO_CALLS,
            },
            "required": ["role", "content"],
        },
        {
            "properties": {"role": {"const": "assistant"}, "content": CONTENT, **NO_CALL_ID},
            "required": ["role", "content"],
        },
        {
            "properties": {
                "role": {"const": "assistant"},
                "tool_calls": {"type": "array", "minItems": 1},
                **NO_CALL_ID,
            },
            "required": ["role", "tool_calls"],
        },
        {
            "properties": {
                "role": {"const": "tool"},
                "content": CONTENT,
                "tool_call_id": {"type": "string"},
                **NO_CALLS,
            },
            "required": ["role", "content", "tool_call_id"],
        },
    ]
}


THOUGHTS = frozenset({"thinking", "reasoning", "redacted_thinking"})


def _is_of(part: object, types: Container[object]) -> bool:
    return isinstance(part, dict) and isinstance(part.get("type"), str) and part["type"] in types


def _with_text(part: object) -> object:
    """Return OpenAI's part of a refusal as a text."""
    if isinstance(part, dict) and _is_of(part, {"refusal"}):
        return {"type": "text", "text": part.get("refusal")}
    return part


class ChatMessage(RequestModel):
    """One message. "developer" is OpenAI's newer name for "system"."""

    model_config = ConfigDict(json_schema_extra=ROLES)

    unsupported: ClassVar[Mapping[str, tuple[JsonValue, ...]]] = {
        "audio": (),
        "function_call": (),
    }

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: (
        Annotated[
            list[TextPart], Field(min_length=1), BeforeValidator(_as_parts, json_schema_input_type=str | NonemptyParts)
        ]
        | None
    ) = None
    tool_calls: Annotated[list[ToolCall], Field(max_length=MAX_CALLS)] = Field(default_factory=list)
    tool_call_id: Annotated[str, Field(min_length=1, max_length=MAX_ID_CHARS)] | None = None
    prefix: bool = False  # Mistral's way to have the last message continued

    @model_validator(mode="before")
    @classmethod
    def _as_this_server_writes(cls, value: object) -> object:
        """Drop the reasoning and keep the text of a refusal in an answer that another server wrote."""
        if not isinstance(value, dict) or value.get("role") != "assistant":
            return value
        content, refusal = value.get("content"), value.get("refusal")
        if isinstance(content, list):
            parts = [_with_text(part) for part in content if not _is_of(part, THOUGHTS)]
            return {**value, "content": parts or ""} if parts != content else value
        return {**value, "content": refusal} if content is None and isinstance(refusal, str) else value

    @property
    def text(self) -> str:
        """The texts of the parts, joined by newlines."""
        return "\n".join(part.text or "" for part in self.content or [])

    @property
    def calls(self) -> tuple[Call, ...]:
        """The assistant's tool calls; arguments that are not a JSON object are {}."""
        return tuple(Call(call.id, call.function.name, call.arguments or {}) for call in self.tool_calls)

    @property
    def call_id(self) -> str:
        """The id of the call that a tool's message answers; empty in other messages."""
        return self.tool_call_id or ""

    @property
    def template_role(self) -> str:
        """The role under its name in chat templates."""
        return "system" if self.role == "developer" else self.role


class ChatTemplateKwargs(RequestModel):
    """Arguments of the chat template besides the messages. Names outside this list are rejected."""

    model_config = ConfigDict(json_schema_extra={"additionalProperties": False})

    date_string: Annotated[str, Field(max_length=MAX_KWARG_CHARS)] | None = None
    enable_thinking: bool | None = None
    reasoning_effort: Annotated[str, Field(max_length=MAX_KWARG_CHARS)] | None = None

    @model_validator(mode="before")
    @classmethod
    def _reject_other_names(cls, value: object) -> object:
        if isinstance(value, dict) and not value.keys() <= cls.model_fields.keys():
            names = ", ".join(f"'{name}'" for name in cls.model_fields)
            raise unsupported_parameter("chat_template_kwargs", f"'chat_template_kwargs' supports only {names}.")
        return value


def _turns(value: object) -> object:
    if isinstance(value, list):
        check_length(value, MAX_MESSAGES)
        reject_unsupported_members(ChatMessage, value, "messages")
    return value


NonemptyTurns = Annotated[list[ChatMessage], Field(min_length=1, max_length=MAX_MESSAGES)]
Turns = Annotated[NonemptyTurns, BeforeValidator(_turns, json_schema_input_type=NonemptyTurns)]


class Conversation(RequestModel):
    """A list of messages, and how the rendered conversation ends."""

    turns_field: ClassVar[str | None] = "messages"

    messages: Turns
    add_generation_prompt: bool | None = None
    continue_final_message: bool = False
    chat_template_kwargs: ChatTemplateKwargs = Field(default_factory=ChatTemplateKwargs)
    tools: Tools = Field(default_factory=list)

    @model_validator(mode="after")
    def _check_conversation(self) -> "Conversation":
        for index, message in enumerate(self.messages):
            _check_message(index, message)
        check_calls(self.messages)
        for index, message in enumerate(self.messages):
            if message.prefix and (message.role != "assistant" or index < len(self.messages) - 1):
                param = f"messages[{index}].prefix"
                raise invalid_value(f"'{param}' is allowed only in a last message, of role 'assistant'.", param)
        if self.is_continued and self.add_generation_prompt:
            reason = "'continue_final_message' and 'add_generation_prompt' exclude each other."
            raise invalid_value(reason, "continue_final_message")
        if self.is_continued and self.messages[-1].role != "assistant":
            reason = "'continue_final_message' requires that the last message is the assistant's."
            raise invalid_value(reason, "continue_final_message")
        return self

    @property
    def is_continued(self) -> bool:
        """True if the reply continues the last message, by `continue_final_message` or by its `prefix`."""
        return self.continue_final_message or self.messages[-1].prefix

    @cached_property
    def contents(self) -> list[str]:
        """All texts of the prompt: messages, arguments of tool calls, and tools."""
        texts = [message.text for message in self.messages]
        texts += [call.function.arguments for message in self.messages for call in message.tool_calls]
        return texts + self.tool_texts

    @cached_property
    def tool_texts(self) -> list[str]:
        """The tools as JSON."""
        return [tool.model_dump_json() for tool in self.tools]

    def turns(self) -> tuple[list[Turn], list[str]]:
        """Return the messages with whole tool calls, and the names of the repairs that this took."""
        return with_whole_calls(self.messages)

    @property
    def with_generation_prompt(self) -> bool:
        """The template's argument `add_generation_prompt`: true by default, unless the last message is continued."""
        return not self.is_continued if self.add_generation_prompt is None else self.add_generation_prompt


def _check_message(index: int, message: ChatMessage) -> None:
    param = f"messages[{index}]"
    if message.content is None and not message.tool_calls:
        raise _missing(f"{param}.content")
    if message.role == "tool" and message.tool_call_id is None:
        raise _missing(f"{param}.tool_call_id")
    if message.role != "tool" and message.tool_call_id is not None:
        raise invalid_value(
            f"'{param}.tool_call_id' is allowed only in messages of role 'tool'.", f"{param}.tool_call_id"
        )
    if message.role != "assistant" and message.tool_calls:
        raise invalid_value(
            f"'{param}.tool_calls' is allowed only in messages of role 'assistant'.", f"{param}.tool_calls"
        )
    _check_parts(index, message)


def _missing(param: str) -> ApiError:
    return ApiError(f"'{param}' is required.", param=param, code="missing_required_parameter")


def _check_parts(index: int, message: ChatMessage) -> None:
    for position, part in enumerate(message.content or []):
        param = f"messages[{index}].content[{position}]"
        if part.type != "text":
            text = f"'{param}.type' must be 'text': the model reads no images, audio or files."
            raise ApiError(text, param=f"{param}.type", code="unsupported_value")
        if part.text is None:
            raise _missing(f"{param}.text")
