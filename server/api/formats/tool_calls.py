"""Tool calls in OpenAI's shape, of whole choices and of chunks."""

from collections.abc import Mapping
from dataclasses import replace

from server.chat.turns import short_id
from server.generation.choice import Delta
from server.tools.call_parser import CallPart, ToolCallParser


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
