"""Tool calls in OpenAI's format, in full messages and in chunks."""

from collections.abc import Mapping

from msgspec.structs import replace

from server.chat.turns import short_id
from server.generation.choice import Delta
from server.tools.call_parser import CallPart, ToolCallParser

PIECE_CHARS = 4096  # of a complete answer; the parser copies the rest of a piece for each call in it


class ToolCallFormatter:
    """Formats the tool calls of all choices of one reply."""

    def __init__(self, http_id: str, *, must_call: bool = False) -> None:
        """`must_call`: the output begins with a call, so a stream's first chunk has no text, as in OpenAI's API."""
        self._http_id = http_id
        self.first_text = None if must_call else ""
        self._parsers: dict[int, ToolCallParser] = {}  # by choice
        self._unsent: dict[int, Delta] = {}  # by choice: tokens that have not shown any text or call yet

    def pieces(self, part: Delta) -> list[tuple[Delta, Mapping[str, object]]]:
        """Return the chunks of one part of a stream: each with the delta that it carries and the new message fields."""
        parser = self._parsers.setdefault(part.index, ToolCallParser())
        words, parts = parser.push(part.text)
        if part.finish_reason is not None:
            words += parser.finish()
        added: list[Mapping[str, object]] = [{"content": words}] if words else []
        added += [{"tool_calls": [self._chunk(part.index, call)]} for call in parts]
        carried = self._with_unsent(part)
        if not added and part.finish_reason is None:
            self._unsent[part.index] = carried
            return []
        if not added:
            return [(_with_finish_reason(replace(carried, text=""), part, parser), {})]
        first = replace(carried, text="", finish_reason=None, stop_reason=None)
        pieces = [(first, added[0]), *((Delta(part.index), one) for one in added[1:])]
        if part.finish_reason is not None:
            pieces.append((_with_finish_reason(Delta(part.index), part, parser), {}))
        return pieces

    def full(self, delta: Delta) -> tuple[Delta, Mapping[str, object]]:
        """Return a complete choice's delta, with the finish reason that its calls imply, and its message."""
        parser = ToolCallParser()
        words, by_call = _parse(delta.text, parser)
        if not by_call:
            return delta, {"role": "assistant", "content": words, "refusal": None}
        calls = [self._call(delta.index, index, parts) for index, parts in enumerate(by_call)]
        message = {"role": "assistant", "content": words or None, "refusal": None, "tool_calls": calls}
        return _with_finish_reason(delta, delta, parser), message

    def _with_unsent(self, part: Delta) -> Delta:
        unsent = self._unsent.pop(part.index, None)
        if unsent is None:
            return part
        return replace(
            part,
            token_ids=unsent.token_ids + part.token_ids,
            positions=unsent.positions + part.positions,
            routing=unsent.routing + part.routing,
            gates=unsent.gates + part.gates,
            rendered_logprobs=None,  # they lack the unsent positions
        )

    def _chunk(self, choice_index: int, part: CallPart) -> Mapping[str, object]:
        """Return a call's first chunk with all keys, later ones with the arguments only: clients concatenate them."""
        if part.name is None:
            return {"index": part.index, "function": {"arguments": part.arguments}}
        function = {"name": part.name, "arguments": ""}
        return {"index": part.index, "id": self._id(choice_index, part.index), "type": "function", "function": function}

    def _call(self, choice_index: int, index: int, parts: list[CallPart]) -> Mapping[str, object]:
        function = {"name": parts[0].name, "arguments": "".join(part.arguments for part in parts)}
        return {"id": self._id(choice_index, index), "type": "function", "function": function}

    def _id(self, choice_index: int, index: int) -> str:
        return short_id(f"{self._http_id} {choice_index} {index}")


def _parse(text: str, parser: ToolCallParser) -> tuple[str, list[list[CallPart]]]:
    """Return the plain text of a complete answer, and the parts of each call."""
    words, by_call = "", list[list[CallPart]]()
    for start in range(0, len(text), PIECE_CHARS):
        more_words, parts = parser.push(text[start : start + PIECE_CHARS])
        words += more_words
        by_call += [[] for _ in range(parser.num_calls - len(by_call))]
        for part in parts:
            by_call[part.index].append(part)
    return words + parser.finish(), by_call


def _with_finish_reason(delta: Delta, part: Delta, parser: ToolCallParser) -> Delta:
    """Return `delta` with the end of `part`: `tool_calls` if the calls are complete, else the part's own reason."""
    has_calls = parser.is_complete and part.finish_reason == "stop"
    return replace(delta, finish_reason="tool_calls" if has_calls else part.finish_reason, stop_reason=part.stop_reason)
