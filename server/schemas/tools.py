"""Tools: their definitions, `tool_choice`, and the calls and results in a conversation."""

from collections.abc import Mapping, Sequence
from typing import Annotated, ClassVar, Literal

from pydantic import BeforeValidator, Field, JsonValue
from pydantic_core import PydanticCustomError

from server.errors import invalid_value, unsupported_parameter
from server.schemas.closed_objects import closed
from server.schemas.constraint_spellings import Kind
from server.schemas.validation import ConstrainingObject, RequestModel
from server.strict_json import JsonValue as Json

MAX_TOOLS = 128

FunctionName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,128}$")]


class FunctionDefinition(ConstrainingObject):
    """A function that the model may call. The arguments follow `parameters`.

    Parts of `parameters` that cannot be enforced are rejected if `strict` is true, else ignored and reported.
    """

    path: ClassVar[str] = "tools[].function"
    constraint_fields: ClassVar[Mapping[Kind, str] | None] = {"arguments": "parameters"}

    name: FunctionName
    description: str = ""
    parameters: dict[str, JsonValue] | None = None
    strict: bool | None = None

    def schema_of_arguments(self) -> dict[str, Json]:
        """Return the schema of the arguments object, in which objects have no members but those described."""
        if self.parameters is None:
            return {"type": "object", "additionalProperties": False}
        return closed({"type": "object", **self.parameters})


class Tool(ConstrainingObject):
    """One tool; functions are the only kind."""

    path: ClassVar[str] = "tools[]"
    constraint_fields: ClassVar[Mapping[Kind, str] | None] = {"arguments": "function.parameters"}

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


class AllowedTool(RequestModel):
    """One of the functions that the model may call."""

    type: Literal["function"]
    function: NamedFunction


class AllowedTools(RequestModel):
    """The functions that the model may call, or with mode "required" must call one of."""

    mode: Literal["auto", "required"]
    tools: Annotated[list[AllowedTool], Field(min_length=1, max_length=MAX_TOOLS)]


class ToolChoice(RequestModel):
    """Selects whether the model may or must call tools, and which ones."""

    type: Literal["none", "auto", "required", "function", "allowed_tools"]
    function: NamedFunction | None = None
    allowed_tools: AllowedTools | None = None

    @property
    def must_call(self) -> bool:
        """True if the answer must have a call."""
        if self.allowed_tools is not None:
            return self.allowed_tools.mode == "required"
        return self.type in ("required", "function")

    @property
    def names(self) -> list[str] | None:
        """The functions that may be called; None for all tools."""
        if self.allowed_tools is not None:
            return [tool.function.name for tool in self.allowed_tools.tools]
        return None if self.function is None else [self.function.name]


WORDS = {"none": "none", "auto": "auto", "required": "required", "any": "required"}  # "any" is Mistral's word
NO_PARALLEL_CALLS = "disable_parallel_tool_use"  # Anthropic's member of `tool_choice`
NAMING_CHOICES = ("function", "allowed_tools")  # the type, which is also the member that has the names


def _as_choice(value: object) -> object:
    if isinstance(value, str):
        if value not in WORDS:
            raise PydanticCustomError("literal_error", "", {"expected": "'none', 'auto', 'required' or 'any'"})
        return {"type": WORDS[value]}
    if isinstance(value, dict) and value.get(NO_PARALLEL_CALLS):
        hint = "Send 'parallel_tool_calls': false instead."
        param = f"tool_choice.{NO_PARALLEL_CALLS}"
        raise unsupported_parameter(param, f"'{param}' is not supported here. {hint}")
    if isinstance(value, dict) and (value.get("type") not in NAMING_CHOICES or value["type"] not in value):
        raise PydanticCustomError("literal_error", "", {"expected": '{"type": "function", "function": {"name": ...}}'})
    return {name: value[name] for name in ("type", value["type"])} if isinstance(value, dict) else value


Tools = Annotated[list[Tool], Field(max_length=MAX_TOOLS)]
ToolChoiceParam = Annotated[ToolChoice, BeforeValidator(_as_choice)]


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
    if not names.issuperset(choice.names or ()):
        raise invalid_value("'tool_choice' names a function that is not among the 'tools'.", "tool_choice")
