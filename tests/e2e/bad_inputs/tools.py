"""Tools, and tool calls in a conversation."""

from typing import Any

from tests.e2e.bad_inputs.response_formats import BAD_SCHEMAS, REGEX, with_outputs
from tests.e2e.bad_inputs.rows import (
    CHAT,
    HI,
    MISSING,
    NO_TEXT,
    TOO_LONG,
    TOO_MANY,
    TYPE,
    UNSUPPORTED,
    VALUE,
    Body,
    Row,
    conversation,
)

M0, CALL, CALLED = "messages[0]", "messages[1].tool_calls[0]", "messages[1].tool_calls[0].function"
PARAMETERS = "tools[0].function.parameters"


def called(**call: Any) -> Body:
    """Return a conversation with a tool call of the assistant that has the changed fields."""
    good = {"id": "a", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    message = {"role": "assistant", "tool_calls": [good | call]}
    return conversation(HI, message, {"role": "tool", "tool_call_id": "a", "content": "1"})


def tool(**function: Any) -> Body:
    return {"type": "function", "function": {"name": "f"} | function}


def with_tools(*tools: Any) -> Body:
    return {"tools": list(tools), "tool_choice": "required"}


TOOL_ROWS: dict[str, Row] = {
    "tools": Row(
        (CHAT,),
        [
            *[({"tools": value}, TYPE, "tools") for value in ("Zebra", {}, 5)],
            *[(with_tools(value), TYPE, "tools[0]") for value in (None, "Zebra", 5, [])],
            (with_tools({}), MISSING, "tools[0].type"),
            (with_tools({"type": "function"}), MISSING, "tools[0].function"),
            (with_tools({"type": "Zebra", "function": {"name": "f"}}), VALUE, "tools[0].type"),
            *[(with_tools(tool(name=name)), VALUE, "tools[0].function.name") for name in ("", "f g", "f\0", "\u00e9")],
            (with_tools(tool(name="Zebra" * 26)), VALUE, "tools[0].function.name"),
            (with_tools(tool(name=5)), TYPE, "tools[0].function.name"),
            (with_tools(tool(), tool()), VALUE, "tools[1].function.name"),
            (with_tools(*[tool(name=f"f{number}") for number in range(10_000)]), TOO_MANY, "tools"),
            *[(with_tools(tool(parameters=value)), TYPE, PARAMETERS) for value in (5, [], "Zebra")],
            *[(with_tools(tool(parameters={"type": value})), VALUE, PARAMETERS) for value in ("string", 5, ["object"])],
            (with_tools(tool(strict="Zebra")), TYPE, "tools[0].function.strict"),
            (with_tools({**tool(), "input_schema": {"type": "string"}}), UNSUPPORTED, "tools[].input_schema"),
            *[
                (
                    with_tools(tool(parameters={"properties": {"a": schema}, "required": ["a"]}, strict=True)),
                    VALUE,
                    PARAMETERS,
                )
                for schema in BAD_SCHEMAS
                if schema not in ({"$ref": "#"}, {"enum": list(range(100_000))}) and len(str(schema)) < 9000
            ],
        ],
    ),
    "tool_choice": Row(
        (CHAT,),
        [
            *[
                ({"tools": [tool()], "tool_choice": choice}, VALUE, "tool_choice")
                for choice in ("Zebra", "", {}, {"type": "function"}, {"type": "none"}, {"type": "Zebra"})
            ],
            *[({"tools": [tool()], "tool_choice": choice}, TYPE, "tool_choice") for choice in (5, True, [])],
            *[
                ({"tools": [tool()], "tool_choice": choice}, UNSUPPORTED, "tool_choice")
                for choice in ("auto", None)  # the model was not taught to call tools
            ],
            *[
                ({"tools": [tool()], "tool_choice": {"type": "function", "function": {"name": name}}}, code, param)
                for name, code, param in (
                    ("Zebra", VALUE, "tool_choice"),
                    (5, TYPE, "tool_choice.function.name"),
                    (None, MISSING, "tool_choice.function.name"),
                )
            ],
            *[({"tools": tools, "tool_choice": "required"}, VALUE, "tool_choice") for tools in ([], None)],
            ({**with_tools(tool()), "parallel_tool_calls": "Zebra"}, TYPE, "parallel_tool_calls"),
            ({**with_tools(tool()), **with_outputs(regex="a")}, VALUE, REGEX),
            ({**with_tools(tool()), "min_tokens": 2}, VALUE, "min_tokens"),
            (
                {
                    **with_tools(tool()),
                    **conversation(HI, {"role": "assistant", "content": "x"}),
                    "continue_final_message": True,
                },
                VALUE,
                "tools",
            ),
        ],
    ),
    "calls in a conversation": Row(
        (CHAT,),
        [
            (called(function={"name": "f", "arguments": []}), TYPE, f"{CALLED}.arguments"),
            *[(called(function={"name": name}), VALUE, f"{CALLED}.name") for name in ("", "Zebra\0", "f" * 129)],
            (called(function=None), MISSING, f"{CALL}.function"),
            (called(type="Zebra"), VALUE, f"{CALL}.type"),
            (called(id=""), NO_TEXT, f"{CALL}.id"),
            (called(id="Zebra" * 60), TOO_LONG, f"{CALL}.id"),
            (called(id="b"), VALUE, "messages[2].tool_call_id"),
            *[
                (conversation(HI, {"role": "assistant", "tool_calls": calls}), code, param)
                for calls, code, param in (
                    ("Zebra", TYPE, "messages[1].tool_calls"),
                    ([None], TYPE, CALL),
                    ([{}], MISSING, f"{CALL}.id"),
                    ([], MISSING, "messages[1].content"),
                    (None, MISSING, "messages[1].content"),
                )
            ],
            (conversation({"role": "tool", "content": "x", "tool_call_id": "a"}), VALUE, f"{M0}.tool_call_id"),
            (conversation({"role": "tool", "content": "x"}), MISSING, f"{M0}.tool_call_id"),
            (conversation({**HI, "tool_call_id": "a"}), VALUE, f"{M0}.tool_call_id"),
            (conversation({**HI, "tool_calls": called()["messages"][1]["tool_calls"]}), VALUE, f"{M0}.tool_calls"),
            (conversation(*called()["messages"][:2]), VALUE, "messages[1].tool_calls"),
        ],
    ),
}
