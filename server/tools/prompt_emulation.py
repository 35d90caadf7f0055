"""Tool use for models without tool support: tools, calls and results are written as plain text in the prompt."""

import json
from collections.abc import Sequence
from itertools import groupby

from server.chat.mistral_format import CALLS_MARKER
from server.chat.repair import BLANK_LINE
from server.chat.turns import Message, Turn
from server.tools.constraints import ToolUse

RESULTS_MARKER = "[TOOL_RESULTS]"
CALL_SYNTAX = f'{CALLS_MARKER} [{{"name": "...", "arguments": {{...}}}}]'


def with_prompted_tools(messages: Sequence[Message], use: ToolUse | None) -> list[Turn]:
    """Write calls into the assistant's texts and results into user texts.

    With `use`, put a system message in front that describes its tools.
    """
    turns: list[Turn] = []
    for is_result, run in groupby(messages, key=lambda message: message.template_role == "tool"):
        members = list(run)
        turns += [Turn("user", "\n".join(map(_result_text, members)))] if is_result else map(_with_call_text, members)
    return turns if use is None else _add_instructions(turns, _instructions(use))


def _add_instructions(turns: list[Turn], instructions: str) -> list[Turn]:
    if turns and turns[0].template_role == "system":
        return [Turn("system", f"{instructions}{BLANK_LINE}{turns[0].text}"), *turns[1:]]
    return [Turn("system", instructions), *turns]


def _result_text(message: Message) -> str:
    return f"{RESULTS_MARKER} {_json(Turn('tool', message.text, (), message.call_id).result())}"


def _with_call_text(message: Message) -> Turn:
    if not message.calls:
        return Turn(message.template_role, message.text)
    calls = f"{CALLS_MARKER} {_json([call.as_mistral() for call in message.calls])}"
    return Turn(message.template_role, f"{message.text}\n{calls}" if message.text else calls)


def _instructions(use: ToolUse) -> str:
    tools = _json([tool.as_mistral() for tool in use.tools])
    when = "Answer by calling" if use.must_call else "Where it helps, answer by calling"
    return f"These functions can be called: {tools}\n{when} them, in this form and with no other words: {CALL_SYNTAX}"


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)
