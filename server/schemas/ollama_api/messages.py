"""Messages of Ollama's API, and the chat messages that they become."""

from collections.abc import Mapping, Sequence
from typing import Annotated, ClassVar, Literal

from pydantic import BeforeValidator, Field, JsonValue

from server.errors import invalid_value
from server.schemas.conversation import MAX_MESSAGES
from server.schemas.generation import Name
from server.schemas.tool_calls import MAX_CALLS, CalledFunction
from server.schemas.translated import JsonObject
from server.schemas.validation import RequestModel, check_length, reject_unsupported_members


class OllamaFunction(CalledFunction):
    """The function of a call. `index`, the call's place, is left out: calls are a list."""

    index: JsonValue = None


class OllamaCall(RequestModel):
    """A call in an earlier reply. Most clients send no ids, and all calls are of one type."""

    id: Name | None = None
    type: JsonValue = None
    function: OllamaFunction


class OllamaMessage(RequestModel):
    """A message. Its thinking is left out of the prompt."""

    unsupported: ClassVar[Mapping[str, tuple[JsonValue, ...]]] = {"images": ([],)}

    role: Literal["system", "user", "assistant", "tool"]
    content: str = ""
    thinking: str | None = None
    tool_calls: Annotated[list[OllamaCall], Field(max_length=MAX_CALLS)] = Field(default_factory=list)
    tool_name: Name | None = None
    tool_call_id: Name | None = None


def _turns(value: object) -> object:
    if isinstance(value, list):
        check_length(value, MAX_MESSAGES)
        reject_unsupported_members(OllamaMessage, value, "messages")
    return value


SomeTurns = Annotated[list[OllamaMessage], Field(max_length=MAX_MESSAGES)]
Turns = Annotated[SomeTurns, BeforeValidator(_turns, json_schema_input_type=SomeTurns)]


def chat_messages(messages: Sequence[OllamaMessage]) -> list[JsonObject]:
    """Return chat's messages. Calls without ids get some, and each result that of the call it answers: of the function
    that it names, or of the first call without a result. Raises ApiError 400 if there is none."""
    translated: list[JsonObject] = []
    open_calls: dict[str, str] = {}  # id -> function
    for index, message in enumerate(messages):
        if message.role == "tool":
            answered = message.tool_call_id or _answered(index, message, open_calls)
            open_calls.pop(answered, None)
            translated.append({"role": "tool", "content": message.content, "tool_call_id": answered})
            continue
        body: JsonObject = {"role": message.role, "content": message.content}
        if message.tool_calls:
            named = [(call.id or f"call_{index}_{n}", call.function) for n, call in enumerate(message.tool_calls)]
            open_calls = {call_id: function.name for call_id, function in named}
            body["tool_calls"] = [
                {"id": call_id, "type": "function", "function": function.model_dump(exclude={"index"})}
                for call_id, function in named
            ]
        translated.append(body)
    return translated


def _answered(index: int, message: OllamaMessage, open_calls: Mapping[str, str]) -> str:
    """Return the id of the call that this message is the result of."""
    if not open_calls:
        param = f"messages[{index}]"
        raise invalid_value(f"'{param}' is a result, but no call before it is without one.", param)
    named = (call_id for call_id, name in open_calls.items() if name == message.tool_name)
    return next(named, next(iter(open_calls)))
