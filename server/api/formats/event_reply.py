"""The common part of APIs that translate to chat: chat chunks become their events, which build up one full reply."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

from server.api.formats.json_pieces import JsonList
from server.errors import ApiError
from server.generation.usage import Usage
from server.strict_json import JsonValue, parse_object

Event = dict[str, Any]
Entries = list[Event] | JsonList  # log probabilities, one of each token


def _entries(choice: Mapping[str, Any]) -> Entries:
    logprobs = choice.get("logprobs") or {}
    entries: Entries = logprobs.get("content") or []
    return entries


def call_arguments(text: str) -> dict[str, JsonValue]:
    """Parse a call's arguments.

    Return an empty object if a limit cut them off, or if this server would reject them in a later request.
    """
    try:
        return parse_object(text.encode()) if text else {}
    except ApiError:
        return {}


def is_object(text: str) -> bool:
    """Return whether a call's arguments are complete."""
    try:
        parse_object(text.encode())
    except ApiError:
        return False
    return True


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
        elif not added.get("tool_calls"):
            events += self._add_logprobs(_entries(choice))
        for call in added.get("tool_calls") or []:
            events += self._add_call(call)
        if choice.get("finish_reason"):
            self._finish(choice)
        return events

    def idle(self) -> list[Event]:
        """Return the events after a while without output, in formats that have no comments to keep a stream alive."""
        return []

    @abstractmethod
    def end(self, usage: Usage) -> list[Event]:
        """Return the events after the last chunk."""

    @abstractmethod
    def _add_text(self, text: str, logprobs: Entries) -> list[Event]:
        """Add a piece of text. `logprobs`: chat's entries of its tokens, if they were requested."""

    def _add_logprobs(self, logprobs: Entries) -> list[Event]:
        """Add entries of tokens that have no text of their own, such as the end token, in formats that have entries."""
        return []

    @abstractmethod
    def _add_call(self, call: Mapping[str, Any]) -> list[Event]:
        """Add the start of a call, which has its id, or more of its arguments."""

    @abstractmethod
    def _finish(self, choice: Mapping[str, Any]) -> None:
        """Record the choice's finish reason."""
