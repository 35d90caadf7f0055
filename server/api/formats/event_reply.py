"""The common part of Responses and Messages: chat chunks become named events, which build up one full reply."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

from server.generation.usage import Usage

Event = dict[str, Any]


def _entries(choice: Mapping[str, Any]) -> list[Event]:
    logprobs = choice.get("logprobs") or {}
    return list(logprobs.get("content") or [])


class EventReply(ABC):
    """The reply of one endpoint. Feed it the choices of chat chunks, or one full choice, in order."""

    @abstractmethod
    def begin(self, usage: Usage) -> list[Event]:
        """Return the events before the first chunk."""

    def chunk(self, choice: Mapping[str, Any]) -> list[Event]:
        """Return the events of a chunk's choice, or of a full choice."""
        added = choice.get("delta") or choice.get("message") or {}
        events: list[Event] = []
        if added.get("content"):
            events += self._add_text(added["content"], _entries(choice))
        for call in added.get("tool_calls") or []:
            events += self._add_call(call)
        if choice.get("finish_reason"):
            self._finish(choice)
        return events

    @abstractmethod
    def end(self, usage: Usage) -> list[Event]:
        """Return the events after the last chunk."""

    @abstractmethod
    def _add_text(self, text: str, logprobs: list[Event]) -> list[Event]:
        """Add a piece of text. `logprobs`: chat's entries of its tokens, if they were requested."""

    @abstractmethod
    def _add_call(self, call: Mapping[str, Any]) -> list[Event]:
        """Add the start of a call, which has its id, or more of its arguments."""

    @abstractmethod
    def _finish(self, choice: Mapping[str, Any]) -> None:
        """Record the choice's finish reason."""
