"""Replies in the format of Ollama's API: records of one JSON object each, of which a stream has one per line.

Works on the choices that /v1/chat/completions would send, and knows nothing of tokens.
"""

import time
from abc import abstractmethod
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

import orjson

from server.api.formats.event_reply import Event, EventReply, call_arguments, is_object
from server.generation.usage import Usage, expert_tokens

NS = 1_000_000_000


# Characters at which clients that split a stream into lines cut one, though they are no end of a line of JSON.
_CUT_AT = {character.encode(): f"\\u{ord(character):04x}".encode() for character in "\u2028\u2029\u0085"}


def line(record: object, default: Callable[[Any], Any] | None = None) -> bytes:
    """Return a record as one line of JSON, however its reader finds the ends of lines."""
    content = orjson.dumps(record, default)
    for character, escaped in _CUT_AT.items():
        content = content.replace(character, escaped)
    return content


def written(moment: datetime) -> str:
    """Return a time of UTC as Ollama writes it."""
    return moment.isoformat().replace("+00:00", "Z")


class OllamaReply(EventReply):
    """Builds `record`, the whole reply, from the chunks of a chat. Durations include the time in the queue."""

    def __init__(self, model: str, arrival_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        """`arrival_s`: of the request, by `clock`."""
        self.record: Event = {}
        self._model = model
        self.arrival_s = self._first_s = arrival_s
        self._clock = clock
        self._text = ""
        self._calls: list[dict[str, str]] = []  # name and arguments
        self._done_reason = "stop"

    def loaded(self) -> Event:
        """Return the reply to a request that generates nothing."""
        return {**self._part(""), "done": True, "done_reason": "load"}

    def begin(self, usage: Usage) -> list[Event]:
        self._first_s = self._clock()
        return []

    def idle(self) -> list[Event]:
        return [self._part("")]

    def end(self, usage: Usage) -> list[Event]:
        total, prompt = (round((moment - self.arrival_s) * NS) for moment in (self._clock(), self._first_s))
        final = {
            "done": True,
            "done_reason": self._done_reason,
            "total_duration": total,
            "load_duration": 0,
            "prompt_eval_count": usage["prompt_tokens"],
            "prompt_eval_duration": prompt,
            "eval_count": usage["completion_tokens"],
            "eval_duration": total - prompt,  # the two are the total, to the nanosecond
            **expert_tokens(usage),
        }
        if self._calls and self._done_reason == "length" and not is_object(self._calls[-1]["arguments"]):
            self._calls.pop()  # cut off: clients would run it
        calls = [
            {"function": {"index": index, "name": call["name"], "arguments": call_arguments(call["arguments"])}}
            for index, call in enumerate(self._calls)
        ]
        self.record = {**self._part(self._text, calls), **final}
        return [*([self._part("", calls)] if calls else []), {**self._part(""), **final}]

    def _add_text(self, text: str, logprobs: object) -> list[Event]:
        self._text += text
        return [self._part(text)]

    def _add_call(self, call: Mapping[str, Any]) -> list[Event]:
        """A call is sent when it is complete: its arguments are an object."""
        function = call["function"]
        if "id" in call:
            self._calls.append({"name": function["name"], "arguments": ""})
        self._calls[-1]["arguments"] += function.get("arguments") or ""
        return []

    def _finish(self, choice: Mapping[str, Any]) -> None:
        self._done_reason = "length" if choice["finish_reason"] == "length" else "stop"

    def _part(self, text: str, calls: list[Event] | None = None) -> Event:
        more = self._content(text, calls or [])
        return {"model": self._model, "created_at": written(datetime.now(UTC)), **more, "done": False}

    @abstractmethod
    def _content(self, text: str, calls: list[Event]) -> Event:
        """Return the members with a piece of the answer."""


class OllamaChatReply(OllamaReply):
    """The reply of /api/chat."""

    def _content(self, text: str, calls: list[Event]) -> Event:
        message = {"role": "assistant", "content": text}
        return {"message": message | ({"tool_calls": calls} if calls else {})}


class OllamaGenerateReply(OllamaReply):
    """The reply of /api/generate."""

    def _content(self, text: str, calls: list[Event]) -> Event:
        return {"response": text}
