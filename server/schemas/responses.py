"""Request model of POST /v1/responses, OpenAI's Responses, translated to chat. The server stores no responses."""

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

from pydantic import BeforeValidator, Field, JsonValue

from server.errors import ApiError
from server.schemas.conversation import MAX_MESSAGES
from server.schemas.generation import Name
from server.schemas.tools import MAX_TOOLS
from server.schemas.translated import JsonObject, TranslatedRequest
from server.schemas.validation import RequestModel, check_length, text_or_list

MAX_METADATA = 16


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
    arguments: str

    def add_to(self, messages: list[JsonObject]) -> None:
        call: JsonObject = {
            "id": self.call_id,
            "type": "function",
            "function": {"name": self.name, "arguments": self.arguments},
        }
        if not messages or messages[-1]["role"] != "assistant":
            messages.append({"role": "assistant", "content": ""})
        calls = messages[-1].setdefault("tool_calls", [])
        assert isinstance(calls, list)
        calls.append(call)


class FunctionOutputItem(RequestModel):
    """The result of a function call."""

    type: Literal["function_call_output"]
    call_id: Name
    output: Annotated[list[Part], BeforeValidator(_as_parts, json_schema_input_type=str | list[Part])]

    def add_to(self, messages: list[JsonObject]) -> None:
        text = "\n".join(part.text for part in self.output)
        messages.append({"role": "tool", "tool_call_id": self.call_id, "content": text})


AnyItem = MessageItem | FunctionCallItem | FunctionOutputItem
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


class TextFormat(RequestModel):
    """The required format of the text."""

    type: Literal["text", "json_object", "json_schema"]
    name: Name | None = None
    json_schema: dict[str, JsonValue] | None = Field(None, alias="schema")
    strict: bool | None = None

    @property
    def response_format(self) -> JsonObject:
        """The value of chat's `response_format`."""
        if self.type != "json_schema":
            return {"type": self.type}
        schema: JsonObject = {"name": self.name, "schema": self.json_schema, "strict": self.strict}
        return {"type": "json_schema", "json_schema": schema}


class TextConfig(RequestModel):
    """Options of the text output."""

    format: TextFormat | None = None


class FunctionTool(RequestModel):
    """A function that the model may call."""

    type: Literal["function"]
    name: Name
    description: str | None = None
    parameters: dict[str, JsonValue] | None = None
    strict: bool | None = None

    @property
    def function(self) -> JsonObject:
        return {"type": "function", "function": self.model_dump(exclude={"type"}, exclude_none=True)}


class NamedFunction(RequestModel):
    """A function that the model must call."""

    type: Literal["function"]
    name: Name


def _tool_choice(value: object) -> object:
    if isinstance(value, str) and value not in ("none", "auto", "required"):
        message = "'tool_choice' must be 'none', 'auto', 'required' or a function."
        raise ApiError(message, param="tool_choice", code="invalid_value")
    return {"type": value} if isinstance(value, str) else value


class ToolChoice(RequestModel):
    """Selects whether the model must call a function, and which one."""

    type: Literal["none", "auto", "required", "function"]
    name: Name | None = None

    @property
    def repeated(self) -> JsonValue:
        """The choice in the form that the reply repeats."""
        return {"type": "function", "name": self.name} if self.type == "function" else self.type

    @property
    def choice(self) -> JsonValue:
        """The value of chat's `tool_choice`."""
        return {"type": "function", "function": {"name": self.name or ""}} if self.type == "function" else self.type


class ResponsesRequest(TranslatedRequest):
    """POST /v1/responses."""

    unsupported: ClassVar[Mapping[str, tuple[object, ...]]] = {  # type: ignore[assignment]
        "background": (False,),
        "context_management": (),
        "conversation": (),
        "include": ([], ["reasoning.encrypted_content"]),  # no effect: the model has no reasoning
        "max_tool_calls": (),
        "previous_response_id": (),
        "prompt": (),
        "reasoning": ({}, {"effort": None}, {"summary": None}, {"effort": None, "summary": None}),
        "top_logprobs": (0,),
        "truncation": ("disabled",),
    }

    input: Items
    instructions: str | None = None
    max_output_tokens: Annotated[int, Field(ge=1)] | None = None
    text: TextConfig | None = None
    tools: Annotated[list[FunctionTool], Field(max_length=MAX_TOOLS)] = Field(default_factory=list)
    tool_choice: (
        Annotated[
            ToolChoice,
            BeforeValidator(_tool_choice, json_schema_input_type=Literal["none", "auto", "required"] | NamedFunction),
        ]
        | None
    ) = None
    parallel_tool_calls: bool | None = None
    metadata: Annotated[
        dict[Annotated[str, Field(max_length=64)], Annotated[str, Field(max_length=512)]],
        Field(max_length=MAX_METADATA),
    ] = Field(default_factory=dict)
    user: Name | None = None

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
            "tools": [tool.function for tool in self.tools] or None,
            "tool_choice": self.tool_choice.choice if self.tool_choice else None,
            "parallel_tool_calls": self.parallel_tool_calls,
            "user": self.user,
        }
