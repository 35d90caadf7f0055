"""Tools: their definitions, `tool_choice`, and the calls and results in a conversation."""

from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal

from pydantic import BeforeValidator, ConfigDict, Field, JsonValue
from pydantic_core import PydanticCustomError

from server.chat.turns import Message
from server.errors import ApiError, invalid_value
from server.schemas.validation import RequestModel
from server.strict_json import JsonValue as Json
from server.strict_json import parse_object

MAX_TOOLS = 128
MAX_CALLS = 128  # in one message
MAX_DESCRIPTION_CHARS = 1 << 14
MAX_ID_CHARS = 256

FunctionName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")]


class FunctionDefinition(RequestModel):
    """A function that the model may call. The arguments follow `parameters`.

    Parts of `parameters` that cannot be enforced are rejected if `strict` is true, else ignored and reported.
    """

    name: FunctionName
    description: Annotated[str, Field(max_length=MAX_DESCRIPTION_CHARS)] = ""
    parameters: dict[str, JsonValue] | None = None
    strict: bool | None = None

    def schema_of_arguments(self) -> dict[str, Json]:
        """Return the schema of the arguments object. Without `parameters` it has no members."""
        if self.parameters is None:
            return {"type": "object", "additionalProperties": False}
        return {"type": "object", **self.parameters}


class Tool(RequestModel):
    """One tool; functions are the only kind."""

    model_config = ConfigDict(extra="forbid")

    type: Literal["function"]
    function: FunctionDefinition

    def as_mistral(self) -> dict[str, Json]:
        """Return the tool as a prompt has it, with the keys in this order."""
        function: dict[str, Json] = {
            "name": self.function.name,
            "description": self.function.description,
            "parameters": dict(self.function.parameters or {}),
        }
        return {"type": "function", "function": function}


class NamedFunction(RequestModel):
    """A function by its name."""

    name: FunctionName


class ToolChoice(RequestModel):
    """Selects whether the model may or must call tools. Type "function": it must call that function."""

    type: Literal["none", "auto", "required", "function"]
    function: NamedFunction | None = None


def _as_choice(value: object) -> object:
    if isinstance(value, str):
        if value not in ("none", "auto", "required"):
            raise PydanticCustomError("literal_error", "", {"expected": "'none', 'auto' or 'required'"})
        return {"type": value}
    if isinstance(value, dict) and (value.get("type") != "function" or "function" not in value):
        raise PydanticCustomError("literal_error", "", {"expected": '{"type": "function", "function": {"name": ...}}'})
    return value


Tools = Annotated[list[Tool], Field(max_length=MAX_TOOLS)]
ToolChoiceParam = Annotated[ToolChoice, BeforeValidator(_as_choice)]


class CalledFunction(RequestModel):
    """The function and arguments of a call in an earlier reply. `arguments` is the text of a JSON object."""

    name: FunctionName
    arguments: str = ""


class ToolCall(RequestModel):
    """A call in an earlier reply."""

    unsupported: ClassVar[dict[str, tuple[Json, ...]]] = {}

    id: Annotated[str, Field(min_length=1, max_length=MAX_ID_CHARS)]
    type: Literal["function"] = "function"
    function: CalledFunction


def check_tools(tools: Sequence[Tool], choice: ToolChoice | None) -> None:
    """Raise ApiError 400 for two tools with the same name, arguments that are no object, or an impossible `choice`."""
    names: set[str] = set()
    for index, tool in enumerate(tools):
        if tool.function.name in names:
            raise invalid_value("Two tools have the same name.", f"tools[{index}].function.name")
        names.add(tool.function.name)
        if tool.function.schema_of_arguments().get("type") != "object":
            param = f"tools[{index}].function.parameters"
            raise invalid_value(f"'{param}' must describe an object.", param)
    if choice is None:
        return
    if not tools and choice.type not in ("none", "auto"):
        raise invalid_value("'tool_choice' requires a call, but the request has no 'tools'.", "tool_choice")
    if choice.function is not None and choice.function.name not in names:
        raise invalid_value("'tool_choice' names a function that is not among the 'tools'.", "tool_choice")


def parsed_arguments(text: str, param: str) -> dict[str, Json]:
    """Parse a call's `arguments`; an empty text is an empty object. Raises ApiError 400."""
    if not text:
        return {}
    try:
        return parse_object(text.encode("utf-8", errors="surrogatepass"))
    except ApiError:
        raise invalid_value(f"'{param}' must be the text of a JSON object.", param) from None


def check_calls(messages: Sequence[Message]) -> None:
    """Raise ApiError 400 unless each call is followed by its result, and each result follows its call."""
    open_calls: set[str] = set()
    caller = 0
    for index, message in enumerate(messages):
        if message.template_role == "tool":
            if message.call_id not in open_calls:
                param = f"messages[{index}].tool_call_id"
                raise invalid_value(f"'{param}' must be the id of a call in the assistant message before it.", param)
            open_calls.discard(message.call_id)
            continue
        if open_calls:
            raise _unanswered(caller)
        open_calls = {call.id for call in message.calls}
        caller = index
        if len(open_calls) < len(message.calls):
            raise invalid_value("Two calls in one message have the same id.", f"messages[{index}].tool_calls")
    if open_calls:
        raise _unanswered(caller)


def _unanswered(index: int) -> ApiError:
    param = f"messages[{index}].tool_calls"
    return invalid_value(f"Each call in '{param}' must be followed by a message of role 'tool' with its id.", param)
