"""Reads calls of tools out of an answer as it comes, and tells them in OpenAI's shape.

tools/constraints.py restricts the answer to text, or to [TOOL_CALLS] and a list of calls. A token limit may cut it off.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from server.chat.mistral_format import CALLS_MARKER
from server.chat.turns import short_id
from server.generation.choice import Delta

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


class ToolCallFormatter:
    """The calls of all choices of one reply."""

    def __init__(self, http_id: str) -> None:
        self._http_id = http_id
        self._readers: dict[int, ToolCallParser] = {}
        self._untold: dict[int, Delta] = {}  # tokens that showed nothing yet

    def pieces(self, part: Delta) -> list[tuple[Delta, Mapping[str, object]]]:
        """A part of a stream as its chunks: of each one the delta that it comes from, and what it adds."""
        reader = self._readers.setdefault(part.index, ToolCallParser())
        words, parts = reader.push(part.text)
        if part.finish_reason is not None:
            words += reader.finish()
        added: list[Mapping[str, object]] = [{"content": words}] if words else []
        added += [{"tool_calls": [self._chunk(part.index, call)]} for call in parts]
        told = self._with_untold(part)
        if not added and part.finish_reason is None:
            self._untold[part.index] = told
            return []
        if not added:
            return [(_ended(replace(told, text=""), part, reader), {})]
        first = replace(told, text="", finish_reason=None, stop_reason=None)
        pieces = [(first, added[0]), *((Delta(part.index), one) for one in added[1:])]
        if part.finish_reason is not None:
            pieces.append((_ended(Delta(part.index), part, reader), {}))
        return pieces

    def whole(self, delta: Delta) -> tuple[Delta, Mapping[str, object]]:
        """A choice's ending and its message."""
        reader = ToolCallParser()
        words, parts = reader.push(delta.text)
        words += reader.finish()
        if not reader.num_calls:
            return delta, {"role": "assistant", "content": words, "refusal": None}
        calls = [self._call(delta.index, parts, index) for index in range(reader.num_calls)]
        message = {"role": "assistant", "content": words or None, "refusal": None, "tool_calls": calls}
        return _ended(delta, delta, reader), message

    def _with_untold(self, part: Delta) -> Delta:
        untold = self._untold.pop(part.index, None)
        if untold is None:
            return part
        return replace(
            part,
            token_ids=untold.token_ids + part.token_ids,
            positions=untold.positions + part.positions,
            routing=untold.routing + part.routing,
        )

    def _chunk(self, choice_index: int, part: CallPart) -> Mapping[str, object]:
        """The first of a call has all its keys, later ones the arguments alone: clients add them up."""
        if part.name is None:
            return {"index": part.index, "function": {"arguments": part.arguments}}
        function = {"name": part.name, "arguments": ""}
        return {"index": part.index, "id": self._id(choice_index, part.index), "type": "function", "function": function}

    def _call(self, choice_index: int, parts: list[CallPart], index: int) -> Mapping[str, object]:
        mine = [part for part in parts if part.index == index]
        function = {"name": mine[0].name, "arguments": "".join(part.arguments for part in mine)}
        return {"id": self._id(choice_index, index), "type": "function", "function": function}

    def _id(self, choice_index: int, index: int) -> str:
        return short_id(f"{self._http_id} {choice_index} {index}")


def _ended(delta: Delta, part: Delta, reader: ToolCallParser) -> Delta:
    """The delta with the end of `part`: `tool_calls` where the calls are whole; a limit or a stop string says so."""
    has_calls = reader.is_complete and part.finish_reason == "stop"
    return replace(delta, finish_reason="tool_calls" if has_calls else part.finish_reason, stop_reason=part.stop_reason)
