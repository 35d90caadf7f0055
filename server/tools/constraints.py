"""Tools of a request: which of them the model may call, and the grammar that its answer must follow."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from server.chat.mistral_format import CALLS_MARKER
from server.errors import invalid_value, unsupported_parameter
from server.schemas.chat import ChatCompletionRequest
from server.schemas.tools import Tool, ToolChoice
from server.strict_json import JsonValue
from server.structured_output.constraints import Constraint, constraint_of, schema_constraint, too_large
from server.structured_output.grammar_checker import GrammarChecker
from server.structured_output.multiples import WorkBudget, check_states

MAX_SCHEMA_CHARS = 1 << 17  # of all tools together
# Any text that does not start as calls do.
TEXT_ANSWER = r"ANSWER: /(?s:.*)/ & ~/ ?\[TOOL_CALLS\](?s:.*)/"
SPACED: dict[str, JsonValue] = {"item_separator": ", ", "key_separator": ": "}  # as in Mistral's training data
CALL_ID = r'CALL_ID: /, "id": "[A-Za-z0-9]{9}"/'


@dataclass(frozen=True)
class ToolUse:
    """Tools of one request, and how the model may call them."""

    tools: tuple[Tool, ...]
    callable_names: frozenset[str]
    must_call: bool
    is_parallel: bool  # an answer may have several calls

    @property
    def callable_tools(self) -> list[tuple[int, Tool]]:
        """Tools that may be called, each with its index in `tools`."""
        return [(i, tool) for i, tool in enumerate(self.tools) if tool.function.name in self.callable_names]


def resolve_tool_use(request: ChatCompletionRequest) -> ToolUse | None:
    """Read `tools` and `tool_choice`; None if no tool may be called. Raises ApiError 400 for a contradiction."""
    choice = request.tool_choice or ToolChoice(type="auto")
    if not request.tools or choice.type == "none":
        return None
    if request.is_continued:
        message = "'tools' cannot be called where the last message is continued; 'tool_choice' none allows them."
        raise invalid_value(message, "tools")
    named = choice.names
    names = frozenset([tool.function.name for tool in request.tools] if named is None else named)
    return ToolUse(tuple(request.tools), names, choice.must_call, request.parallel_tool_calls)


def auto_tool_use(tools: Sequence[Tool]) -> ToolUse | None:
    """Allow calls of all tools and require none, as `tool_choice` "auto" does; None without tools."""
    names = frozenset(tool.function.name for tool in tools)
    return ToolUse(tuple(tools), names, must_call=False, is_parallel=True) if tools else None


def check_can_be_emulated(use: ToolUse, *, is_allowed: bool) -> None:
    """Raise ApiError 400 if a model without tool support would have to decide whether to call a tool."""
    if not use.must_call and not is_allowed:
        message = (
            "This model was not trained to call tools: 'tool_choice' must be 'required', 'none' or name a function. "
            "If the server is started with --tool-emulation, it describes the tools in the prompt."
        )
        raise unsupported_parameter("tool_choice", message)


def described_arguments(use: ToolUse) -> dict[int, Constraint]:
    """Return the constraints on the arguments of the callable tools that are not `strict`, by the tool's index.

    In OpenAI's API the arguments of a `strict` tool follow its schema, so an unsupported schema is refused. Any other
    tool's schema is a description: it is followed as far as a grammar can, and the rest is reported to the client.

    Call it in a thread. Raises ApiError 400 for a schema that is too large.
    """
    budget = WorkBudget()
    tools = [(i, tool) for i, tool in use.callable_tools if not tool.function.strict]
    return {i: _arguments_constraint(i, tool, budget) for i, tool in tools}


async def unsupported_schema_keywords(
    described: Mapping[int, Constraint], checker: GrammarChecker, tenant: int = 0
) -> dict[int, list[str]]:
    """Find schema keywords that no grammar can express, in the constraints that described_arguments() returned.

    `tenant`: who pays for the checks. Returns the keywords as paths into the request, by the tool's index. Raises
    ApiError 429 if too many grammars wait for their check, 503 if a check's process was ended from outside.
    """
    found = {i: (c.param, await checker.unsupported_keywords(c, tenant)) for i, c in described.items()}
    return {i: [f"{param}.{keyword}" for keyword in keywords] for i, (param, keywords) in found.items() if keywords}


def tool_constraints(
    use: ToolUse, request: ChatCompletionRequest, marker_id: int | None, lenient: Collection[int] = ()
) -> list[Constraint]:
    """Return a constraint per tool on its arguments, to locate a bad schema, then the constraint on the whole answer.

    `marker_id`: the control token that starts an answer with calls; None if plain text starts it. `lenient`: indices
    of the tools whose schemas are followed only as far as a grammar can. Call it in a thread. Raises ApiError 400.
    """
    answer = constraint_of(request)
    if use.must_call and answer is not None:
        if request.response_format is None:
            raise invalid_value(f"'{answer.param}' describes a text, but 'tool_choice' requires a call.", answer.param)
        answer = None  # a response format is that of a text, and the answer will have none
    budget = WorkBudget()
    of_arguments = [_arguments_constraint(i, tool, budget, is_lenient=i in lenient) for i, tool in use.callable_tools]
    rules = [
        (tool, constraint.lark.removeprefix("start: "))
        for (_, tool), constraint in zip(use.callable_tools, of_arguments, strict=True)
    ]
    if sum(len(rule) for _, rule in rules) > MAX_SCHEMA_CHARS:
        raise too_large("tools")
    check_states(sum(constraint.num_states for constraint in [*of_arguments, *([answer] if answer else [])]), "tools")
    return [*of_arguments, _answer_constraint(use, rules, answer, marker_id)]


def _answer_constraint(
    use: ToolUse, rules: Sequence[tuple[Tool, str]], answer: Constraint | None, marker_id: int | None
) -> Constraint:
    """Combine the calls with `answer`, the constraint on an answer without calls; None allows any text."""
    marker = f"<[{marker_id}]>" if marker_id is not None else f'" "? "{CALLS_MARKER}"'
    lines = [f"start: {marker} calls", *_call_rules(rules, is_parallel=use.is_parallel)]
    if not use.must_call:
        lines[0] += " | answer"
        lines += [answer.as_rule("answer")] if answer else ["answer: ANSWER", TEXT_ANSWER]
    return Constraint(
        "\n".join(lines),
        answer.param if answer else "tools",
        is_exact=answer is not None,
        shown_ids=() if marker_id is None else (marker_id,),
    )


def _call_rules(rules: Sequence[tuple[Tool, str]], *, is_parallel: bool) -> list[str]:
    """Write the rule `calls`, a list in Mistral's format; a call may have an id, which is not used."""
    more = ' (", " call)*' if is_parallel else ""
    lines = [f'calls: " "? "[" call{more} "]"', "call: " + " | ".join(f"call_{i}" for i in range(len(rules)))]
    for i, (tool, rule) in enumerate(rules):
        lines.append(
            f'call_{i}: "{{\\"name\\": \\"{tool.function.name}\\", \\"arguments\\": " arguments_{i} CALL_ID? "}}"'
        )
        lines.append(f"arguments_{i}: {rule}")
    return [*lines, CALL_ID]


def _arguments_constraint(index: int, tool: Tool, budget: WorkBudget, *, is_lenient: bool = False) -> Constraint:
    """Constrain a text to one tool's arguments. Raises ApiError 400 if the schema is too large."""
    schema = tool.function.schema_of_arguments()
    return schema_constraint(schema, _param(index), SPACED, is_lenient=is_lenient, budget=budget)


def _param(index: int) -> str:
    return f"tools[{index}].function.parameters"
