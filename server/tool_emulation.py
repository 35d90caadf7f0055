"""Tools for models that were not taught any: described in words, called and answered in texts."""

import json
from collections.abc import Sequence

from server.mistral_template import CALLS_MARKER
from server.tools import ToolUse
from server.turns import Message, Turn

RESULTS_MARKER = "[TOOL_RESULTS]"
FORM = f'{CALLS_MARKER} [{{"name": "...", "arguments": {{...}}}}]'


def emulated(messages: Sequence[Message], use: ToolUse | None) -> list[Turn]:
    """The conversation without calls and results of its own kind: they are texts of the assistant and of the user.

    With `use`, the tools stand in front as a text of the system.
    """
    turns = [_in_words(message) for message in messages]
    return turns if use is None else [Turn("system", _instructions(use)), *turns]


def _in_words(message: Message) -> Turn:
    if message.template_role == "tool":
        result = Turn("tool", message.text, (), message.call_id).result()
        return Turn("user", f"{RESULTS_MARKER} {_json(result)}")
    if not message.calls:
        return Turn(message.template_role, message.text)
    calls = f"{CALLS_MARKER} {_json([call.as_mistral() for call in message.calls])}"
    return Turn(message.template_role, f"{message.text}\n{calls}" if message.text else calls)


def _instructions(use: ToolUse) -> str:
    tools = _json([tool.as_mistral() for tool in use.tools])
    when = "Answer by calling" if use.must_call else "Where it helps, answer by calling"
    return f"These functions can be called: {tools}\n{when} them, in this form and with no other words: {FORM}"


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)
