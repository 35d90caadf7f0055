"""Tool calls and their results in a conversation: checks of their order, and repair of calls that were cut off.

A reply that `max_tokens` ends inside a call has arguments that are no JSON object. Clients send such calls back, with
or without a result. Neither is refused: the conversation could not go on.
"""

from collections.abc import Iterator, Sequence
from itertools import takewhile
from typing import Annotated, Literal, Protocol

import orjson
from pydantic import BeforeValidator, Field, JsonValue

from server.chat.turns import Call, Turn
from server.errors import ApiError, invalid_value
from server.schemas.tools import FunctionName
from server.schemas.validation import RequestModel
from server.strict_json import JsonValue as Json
from server.strict_json import parse_object

MAX_CALLS = 128  # in one message
MAX_ID_CHARS = 256


def _as_text(value: object) -> object:
    return orjson.dumps(value).decode() if isinstance(value, dict) else value


class CalledFunction(RequestModel):
    """The function and arguments of a call. `arguments` is a JSON object (Mistral's form) or its text (OpenAI's)."""

    name: FunctionName
    arguments: Annotated[str, BeforeValidator(_as_text, json_schema_input_type=str | dict[str, JsonValue])] = ""


class ToolCall(RequestModel):
    """A call in an earlier reply."""

    id: Annotated[str, Field(min_length=1, max_length=MAX_ID_CHARS)]
    type: Literal["function"] = "function"
    function: CalledFunction

    @property
    def arguments(self) -> dict[str, Json] | None:
        """The arguments; an empty text is an empty object. None: the text is not a JSON object."""
        if not self.function.arguments:
            return {}
        try:
            return parse_object(self.function.arguments.encode("utf-8", errors="surrogatepass"))
        except ApiError:
            return None


class CallingMessage(Protocol):
    """The fields of a message that calls and their results are in."""

    @property
    def template_role(self) -> str: ...
    @property
    def text(self) -> str: ...
    @property
    def tool_calls(self) -> list[ToolCall]: ...
    @property
    def call_id(self) -> str: ...


def check_calls(messages: Sequence[CallingMessage]) -> None:
    """Raise ApiError 400 unless each call is followed by its result, and each result follows its call.

    A call whose arguments are no JSON object may have no result.
    """
    open_calls: dict[str, ToolCall] = {}
    caller = 0
    for index, message in enumerate(messages):
        if message.template_role == "tool":
            if open_calls.pop(message.call_id, None) is None:
                param = f"messages[{index}].tool_call_id"
                raise invalid_value(f"'{param}' must be the id of a call in the assistant message before it.", param)
            continue
        _check_answered(open_calls, caller)
        open_calls = {call.id: call for call in message.tool_calls}
        caller = index
        if len(open_calls) < len(message.tool_calls):
            raise invalid_value("Two calls in one message have the same id.", f"messages[{index}].tool_calls")
    _check_answered(open_calls, caller)


def _check_answered(open_calls: dict[str, ToolCall], caller: int) -> None:
    if any(call.arguments is not None for call in open_calls.values()):
        param = f"messages[{caller}].tool_calls"
        message = f"Each call in '{param}' must be followed by a message of role 'tool' with its id."
        raise invalid_value(message, param)


def with_whole_calls(messages: Sequence[CallingMessage]) -> tuple[list[Turn], list[str]]:
    """Return the messages as turns in which all arguments are objects, and the names of the repairs made.

    Arguments that are none become {} in a call with a result ("emptied-arguments"). A call without a result becomes
    text ("call-as-text").
    """
    turns: list[Turn] = []
    repairs: set[str] = set()
    for index, message in enumerate(messages):
        results = takewhile(lambda later: later.template_role == "tool", _after(messages, index))
        answered = {result.call_id for result in results} if message.tool_calls else set()
        calls, texts = [], [message.text] if message.text else []
        for call in message.tool_calls:
            arguments = call.arguments
            if arguments is None:
                repairs.add("emptied-arguments" if call.id in answered else "call-as-text")
            if arguments is None and call.id not in answered:
                texts.append(f"{call.function.name} {call.function.arguments}")
            else:
                calls.append(Call(call.id, call.function.name, arguments or {}))
        turns.append(Turn(message.template_role, "\n".join(texts), tuple(calls), message.call_id))
    return turns, sorted(repairs)


def _after(messages: Sequence[CallingMessage], index: int) -> Iterator[CallingMessage]:
    return (messages[later] for later in range(index + 1, len(messages)))
