"""Parse tool calls out of an answer that arrives in pieces.

server/tools/constraints.py restricts the answer to a text, or to [TOOL_CALLS] and a list of calls. A token limit may
cut it off.
"""

import re
from dataclasses import dataclass
from typing import Literal

from server.chat.mistral_format import CALLS_MARKER

_HEAD = re.compile(r'[ \[,]*\{"name": "([A-Za-z0-9_-]+)", "arguments": ')


@dataclass(frozen=True)
class CallPart:
    """Part of one call: its name, when it begins, or more of its arguments."""

    index: int
    name: str | None = None
    arguments: str = ""


class ToolCallParser:
    """Parser of one answer. Its results do not depend on how the text was cut into pieces.

    num_calls: calls that have begun. is_complete: the list of calls was parsed to its end.
    """

    def __init__(self) -> None:
        self.is_complete = False
        self.num_calls = 0
        self._state: Literal["start", "text", "head", "arguments", "tail"] = "start"
        self._buffer = ""
        self._depth = 0
        self._in_string = False
        self._is_escaped = False

    def push(self, text: str) -> tuple[str, list[CallPart]]:
        """Parse the next piece. Returns the answer's plain text in it, and its parts of calls."""
        self._buffer += text
        if self._state == "start":
            self._detect_kind()
        if self._state in ("start", "text"):
            words = self._buffer if self._state == "text" else ""
            self._buffer = self._buffer[len(words) :]
            return words, []
        return "", self._parse_calls()

    def finish(self) -> str:
        """Return the plain text that was held back because calls could have started with it."""
        words = self._buffer if self._state == "start" else ""
        self._buffer = ""
        return words

    def _detect_kind(self) -> None:
        start = self._buffer.removeprefix(" ")
        if start.startswith(CALLS_MARKER):
            self._state, self._buffer = "head", start[len(CALLS_MARKER) :]
        elif not CALLS_MARKER.startswith(start):
            self._state = "text"

    def _parse_calls(self) -> list[CallPart]:
        parts: list[CallPart] = []
        while True:
            part = self._parse_head() if self._state == "head" else self._parse_arguments()
            if part is None:
                return parts
            parts.append(part)

    def _parse_head(self) -> CallPart | None:
        match = _HEAD.match(self._buffer)
        if match is None:
            self.is_complete = self.is_complete or self._buffer.startswith("]")
            return None
        self._buffer = self._buffer[match.end() :]
        self._state, self._depth = "arguments", 0
        self.num_calls += 1
        return CallPart(self.num_calls - 1, match.group(1))

    def _parse_arguments(self) -> CallPart | None:
        """Parse more arguments. Skips the rest of the call after them, which may be an id of letters and digits."""
        if self._state == "tail":
            _, brace, rest = self._buffer.partition("}")
            if not brace:
                return None
            self._state, self._buffer = "head", rest
            return self._parse_head()
        end = self._end_of_arguments()
        arguments, self._buffer = self._buffer[:end], self._buffer[end:]
        return CallPart(self.num_calls - 1, None, arguments) if arguments else None

    def _end_of_arguments(self) -> int:
        """Find the end of the arguments' object in the buffer, by counting braces outside of strings."""
        for position, character in enumerate(self._buffer):
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
        return len(self._buffer)
