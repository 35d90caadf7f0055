"""Tools of OpenAI's Responses, and the functions of chat that they become."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, ConfigDict, Discriminator, Field, JsonValue, Tag, model_validator

from server.errors import ApiError, invalid_value
from server.schemas.constraint_spellings import Kind
from server.schemas.generation import Name
from server.schemas.tools import MAX_TOOLS
from server.schemas.translated import JsonObject
from server.schemas.validation import ConstrainingObject, RequestModel

CUSTOM_INPUT = "input"  # the only argument of the function that a custom tool becomes
OWN_KINDS = ("custom", "function", "namespace")  # of tools that become functions of chat
SEPARATOR = "__"  # between a namespace and a name


def chat_name(name: str, namespace: str | None = None) -> str:
    """Return the name of a tool's function in chat: ("list", "files") gives files__list."""
    if not namespace:
        return name
    return namespace.removesuffix(SEPARATOR) + SEPARATOR + name


class FunctionTool(ConstrainingObject):
    """A function that the model may call."""

    path: ClassVar[str] = "tools[]"
    constraint_fields: ClassVar[Mapping[Kind, str] | None] = {"arguments": "parameters"}

    type: Literal["function"]
    name: Name
    description: str | None = None
    parameters: dict[str, JsonValue] | None = None
    strict: bool | None = None

    def function(self, namespace: str | None) -> JsonObject:
        """Return the tool of chat."""
        fields = self.model_dump(exclude={"type"}, exclude_none=True)
        return {"type": "function", "function": {**fields, "name": chat_name(self.name, namespace)}}


class CustomFormat(RequestModel):
    """The form of a custom tool's input."""

    model_config = ConfigDict(extra="forbid")

    type: Literal["text", "grammar"]
    syntax: Literal["lark", "regex"] | None = None
    definition: str | None = None

    @model_validator(mode="after")
    def _check_grammar(self) -> "CustomFormat":
        if self.type == "grammar" and (self.syntax != "regex" or not self.definition):
            message = "The input of a custom tool can follow a grammar only with 'syntax': 'regex' and a 'definition'."
            raise invalid_value(message, "tools")
        return self


class CustomTool(RequestModel):
    """A tool whose input is one text. In chat it is a function with this text as its only argument."""

    type: Literal["custom"]
    name: Name
    description: str | None = None
    format: CustomFormat | None = None

    def function(self, namespace: str | None) -> JsonObject:
        """Return the tool of chat. A regular expression matches the whole input."""
        text: JsonObject = {"type": "string"}
        is_bound = self.format is not None and self.format.type == "grammar"
        if self.format is not None and is_bound:
            text["pattern"] = f"^(?:{self.format.definition})$"
        schema: JsonObject = {
            "type": "object",
            "properties": {CUSTOM_INPUT: text},
            "required": [CUSTOM_INPUT],
            "additionalProperties": False,
        }
        function: JsonObject = {"name": chat_name(self.name, namespace), "parameters": schema, "strict": is_bound}
        return {"type": "function", "function": function | ({"description": self.description or ""})}


def _tag(value: Any) -> str | None:
    """Return the tag of a tool's model; None without a type."""
    kind = value.get("type") if isinstance(value, dict) else getattr(value, "type", None)
    return kind if kind is None else f"{kind}_tool" if kind in OWN_KINDS else "hosted_tool"


CallableTool = Annotated[
    Annotated[FunctionTool, Tag("function_tool")] | Annotated[CustomTool, Tag("custom_tool")], Discriminator(_tag)
]


class NamespaceTool(RequestModel):
    """Tools under a common name. In chat they are functions, with this name in front of theirs."""

    type: Literal["namespace"]
    name: Name
    description: str | None = None
    tools: Annotated[list[CallableTool], Field(max_length=MAX_TOOLS)]


class HostedTool(RequestModel):
    """A tool that OpenAI's servers run, or whose schema their models know. This server leaves it out of the prompt."""

    model_config = ConfigDict(
        extra="allow",  # the response repeats it
        json_schema_extra={"properties": {"type": {"type": "string", "not": {"enum": [*OWN_KINDS]}}}},
    )

    type: Name


Tool = Annotated[
    Annotated[FunctionTool, Tag("function_tool")]
    | Annotated[CustomTool, Tag("custom_tool")]
    | Annotated[NamespaceTool, Tag("namespace_tool")]
    | Annotated[HostedTool, Tag("hosted_tool")],
    Discriminator(_tag),
]


@dataclass(frozen=True)
class Callee:
    """A tool that the model may call: where it stands in the request, and what it is there."""

    path: str
    tool: FunctionTool | CustomTool
    namespace: str | None = None

    @property
    def name(self) -> str:
        """The function's name in chat."""
        return chat_name(self.tool.name, self.namespace)


def callees(tools: Sequence[FunctionTool | CustomTool | NamespaceTool | HostedTool]) -> Iterator[Callee]:
    """Yield the tools that the model may call, in the order of the request."""
    for index, tool in enumerate(tools):
        path = f"tools[{index}]"
        if isinstance(tool, NamespaceTool):
            for position, inner in enumerate(tool.tools):
                yield Callee(f"{path}.tools[{position}]", inner, tool.name)
        elif not isinstance(tool, HostedTool):
            yield Callee(path, tool)


class NamedTool(RequestModel):
    """A tool by its name. Tools of other kinds than functions and custom ones have none."""

    type: Name
    name: Name | None = None
    namespace: Name | None = None


def _tool_choice(value: object) -> object:
    if isinstance(value, str) and value not in ("none", "auto", "required"):
        message = "'tool_choice' must be 'none', 'auto', 'required' or an object."
        raise ApiError(message, param="tool_choice", code="invalid_value")
    return {"type": value} if isinstance(value, str) else value


class ToolChoice(RequestModel):
    """Selects whether the model must call a tool, and which ones it may call."""

    type: Literal["none", "auto", "required", "function", "custom", "allowed_tools"]
    name: Name | None = None
    namespace: Name | None = None
    mode: Literal["auto", "required"] | None = None
    tools: Annotated[list[NamedTool], Field(max_length=MAX_TOOLS)] | None = None

    @model_validator(mode="after")
    def _check_members(self) -> "ToolChoice":
        needed = {"function": ("name",), "custom": ("name",), "allowed_tools": ("mode", "tools")}
        for member in needed.get(self.type, ()):
            if getattr(self, member) is None:
                param = f"tool_choice.{member}"
                raise ApiError(f"'{param}' is required.", param=param, code="missing_required_parameter")
        return self

    @property
    def repeated(self) -> JsonValue:
        """The choice in the form that the reply repeats."""
        return self.type if self.type in ("none", "auto", "required") else self.model_dump(exclude_none=True)

    @property
    def choice(self) -> JsonValue:
        """The value of chat's `tool_choice`."""
        if self.type in ("function", "custom"):
            return _named(chat_name(self.name or "", self.namespace))
        if self.type != "allowed_tools":
            return self.type
        named = [
            _named(chat_name(tool.name, tool.namespace))
            for tool in self.tools or []
            if tool.name and tool.type in OWN_KINDS
        ]
        allowed: JsonObject = {"mode": self.mode, "tools": [*named]}
        return {"type": "allowed_tools", "allowed_tools": allowed} if named or self.mode == "required" else "none"


def _named(name: str) -> JsonObject:
    return {"type": "function", "function": {"name": name}}


ToolChoiceParam = Annotated[
    ToolChoice,
    BeforeValidator(_tool_choice, json_schema_input_type=Literal["none", "auto", "required"] | ToolChoice),
]
