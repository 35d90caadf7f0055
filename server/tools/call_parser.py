"""Reads calls of tools out of an answer as it comes, and tells them in OpenAI's shape.

tools/constraints.py restricts the answer to text, or to [TOOL_CALLS] and a list of calls. A token limit may cut it off.
"""

import re
from dataclasses import dataclass
from typing import Literal

from server.chat.mistral_format import CALLS_MARKER

_HEAD = re.compile(r'[ \[,]*\{"name": "([A-Za-z0-9_-]+)", "arguments": ')


@dataclass(frozen=True)
class CallPart:
    """Something of one call: its name, when it begins, or more of its arguments."""

    index: int
    name: str | None = None
    arguments: str = ""


class ToolCallParser:
    """One answer. Feed it the text in pieces of any size; what it gives does not depend on how it was cut."""

    def __init__(self) -> None:
        self.is_complete = False  # all calls were read, to the end of their list
        self.num_calls = 0
        self._state: Literal["start", "text", "head", "arguments", "tail"] = "start"
        self._held = ""
        self._depth = 0
        self._in_string = False
        self._is_escaped = False

    def push(self, text: str) -> tuple[str, list[CallPart]]:
        """The words of the answer in it, and the parts of calls."""
        self._held += text
        if self._state == "start":
            self._begin()
        if self._state in ("start", "text"):
            words = self._held if self._state == "text" else ""
            self._held = self._held[len(words) :]
            return words, []
        return "", self._take_calls()

    def finish(self) -> str:
        """Words that were held back, because they could have become the start of calls."""
        words = self._held if self._state == "start" else ""
        self._held = ""
        return words

    def _begin(self) -> None:
        start = self._held.removeprefix(" ")
        if start.startswith(CALLS_MARKER):
            self._state, self._held = "head", start[len(CALLS_MARKER) :]
        elif not CALLS_MARKER.startswith(start):
            self._state = "text"

    def _take_calls(self) -> list[CallPart]:
        parts: list[CallPart] = []
        while True:
            part = self._take_head() if self._state == "head" else self._take_arguments()
            if part is None:
                return parts
            parts.append(part)

    def _take_head(self) -> CallPart | None:
        match = _HEAD.match(self._held)
        if match is None:
            self.is_complete = self.is_complete or self._held.startswith("]")
            return None
        self._held = self._held[match.end() :]
        self._state, self._depth = "arguments", 0
        self.num_calls += 1
        return CallPart(self.num_calls - 1, match.group(1))

    def _take_arguments(self) -> CallPart | None:
        """The rest of a call behind its arguments is passed over: it can have an id, of letters and digits."""
        if self._state == "tail":
            _, brace, rest = self._held.partition("}")
            if not brace:
                return None
            self._state, self._held = "head", rest
            return self._take_head()
        end = self._end_of_arguments()
        arguments, self._held = self._held[:end], self._held[end:]
        return CallPart(self.num_calls - 1, None, arguments) if arguments else None

    def _end_of_arguments(self) -> int:
        """How much of what is held belongs to the object; counts braces outside of strings."""
        for position, character in enumerate(self._held):
            if self._in_string:
                self._in_string = self._is_escaped or character != '"'
                self._is_escaped = character == "\\" and not self._is_escaped
            elif character == '"':
                self._in_string = True
            elif character in "{[":
                self._depth += 1
            elif character in "}]":
                self._depth -= 1
                if not self._depth:
                    self._state = "tail"
                    return position + 1
        return len(self._held)
