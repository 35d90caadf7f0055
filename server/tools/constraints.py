"""How a request's tools may be used: which the model may call, what it is shown, and the form of its answer."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from server.chat.mistral_format import CALLS_MARKER
from server.errors import invalid_value, unsupported_parameter
from server.schemas.chat import ChatCompletionRequest
from server.schemas.tools import Tool
from server.strict_json import JsonValue
from server.structured_output.constraints import Constraint, constraint_of, json_rule, too_large

MAX_SCHEMA_CHARS = 1 << 17  # of all tools together
# Any text but one that starts as calls do.
WORDS = r"ANSWER: /(?s:.*)/ & ~/ ?\[TOOL_CALLS\](?s:.*)/"
SPACED: dict[str, JsonValue] = {"item_separator": ", ", "key_separator": ": "}  # as Mistral's models were taught
CALL_ID = r'CALL_ID: /, "id": "[A-Za-z0-9]{9}"/'


@dataclass(frozen=True)
class ToolUse:
    """The tools of one request. `callable_names`: of those that may be called."""

    tools: tuple[Tool, ...]
    callable_names: frozenset[str]
    must_call: bool
    is_parallel: bool

    @property
    def callable_tools(self) -> list[tuple[int, Tool]]:
        """With their places among the tools."""
        return [(i, tool) for i, tool in enumerate(self.tools) if tool.function.name in self.callable_names]


def resolve_tool_use(request: ChatCompletionRequest) -> ToolUse | None:
    """None where no tool may be called. Raises ApiError 400 for what does not go together with tools."""
    choice = request.tool_choice.type if request.tool_choice else "auto"
    if not request.tools or choice == "none":
        return None
    if request.continue_final_message:
        message = "'continue_final_message' goes on with a text; it cannot be combined with 'tools'."
        raise invalid_value(message, "continue_final_message")
    named = request.tool_choice.function if request.tool_choice else None
    names = frozenset([named.name] if named else [tool.function.name for tool in request.tools])
    return ToolUse(tuple(request.tools), names, choice != "auto", request.parallel_tool_calls)


def offered(tools: Sequence[Tool]) -> ToolUse | None:
    """All tools, to be called or not."""
    names = frozenset(tool.function.name for tool in tools)
    return ToolUse(tuple(tools), names, must_call=False, is_parallel=True) if tools else None


def check_can_be_emulated(use: ToolUse, *, is_allowed: bool) -> None:
    """Raises ApiError 400 where a model that knows no tools would have to decide whether to call one."""
    if not use.must_call and not is_allowed:
        message = (
            "This model was not taught to call tools: 'tool_choice' must be 'required', 'none' or name a function. "
            "Started with --tool-emulation, the server asks the model in words."
        )
        raise unsupported_parameter("tool_choice", message)


def arguments_alone(index: int, tool: Tool) -> Constraint:
    """The form of one tool's arguments, to the letter of its schema. Raises ApiError 400."""
    return Constraint(f"start: {_arguments_rule(index, tool)}", _param(index))


def _arguments_rule(index: int, tool: Tool, *, is_loose: bool = False) -> str:
    return json_rule(tool.function.schema_of_arguments(), _param(index), SPACED, is_loose=is_loose)


def tool_constraints(
    use: ToolUse, request: ChatCompletionRequest, marker_id: int | None, loose: Collection[int] = ()
) -> list[Constraint]:
    """The form of the answer, last; before it that of each tool's arguments alone, which tells a bad one apart.

    `marker_id`: the control token that starts an answer with calls; None where its spelling does. `loose`: places of
    tools of whose schemas only that is followed which a grammar can say. Raises ApiError 400.
    """
    answer = constraint_of(request)
    if use.must_call and answer is not None:
        raise invalid_value(f"'{answer.param}' describes a text, and 'tool_choice' asks for a call.", answer.param)
    rules = [(tool, _arguments_rule(i, tool, is_loose=i in loose)) for i, tool in use.callable_tools]
    if sum(len(rule) for _, rule in rules) > MAX_SCHEMA_CHARS:
        raise too_large("tools")
    alone = [
        Constraint(f"start: {rule}", _param(i)) for (i, _), (_, rule) in zip(use.callable_tools, rules, strict=True)
    ]
    marker = f"<[{marker_id}]>" if marker_id is not None else f'" "? "{CALLS_MARKER}"'
    lines = [f"start: {marker} calls", *_call_rules(rules, is_parallel=use.is_parallel)]
    if not use.must_call:
        lines[0] += " | answer"
        lines += [answer.as_rule("answer")] if answer else ["answer: ANSWER", WORDS]
    return [
        *alone,
        Constraint(
            "\n".join(lines),
            answer.param if answer else "tools",
            is_exact=answer is not None,
            shown_ids=() if marker_id is None else (marker_id,),
        ),
    ]


def _call_rules(rules: Sequence[tuple[Tool, str]], *, is_parallel: bool) -> list[str]:
    """`calls` is the list as Mistral's models write it; an id in it is theirs, and not needed."""
    more = ' (", " call)*' if is_parallel else ""
    lines = [f'calls: " "? "[" call{more} "]"', "call: " + " | ".join(f"call_{i}" for i in range(len(rules)))]
    for i, (tool, rule) in enumerate(rules):
        lines.append(
            f'call_{i}: "{{\\"name\\": \\"{tool.function.name}\\", \\"arguments\\": " arguments_{i} CALL_ID? "}}"'
        )
        lines.append(f"arguments_{i}: {rule}")
    return [*lines, CALL_ID]


def _param(index: int) -> str:
    return f"tools[{index}].function.parameters"
