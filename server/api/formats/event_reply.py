"""What Responses and Messages share: a chat's chunks become events, which name their type, and build a whole."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

from server.generation.generation import Usage

Event = dict[str, Any]


class TypedReply(ABC):
    """One endpoint's reply. Feed it chat chunks, or a whole choice, in order; what they make is its own."""

    @abstractmethod
    def begin(self, usage: Usage) -> list[Event]:
        """Before anything else."""

    def chunk(self, choice: Mapping[str, Any]) -> list[Event]:
        """A chunk's choice, or a whole one."""
        added = choice.get("delta") or choice.get("message") or {}
        events: list[Event] = []
        if added.get("content"):
            events += self._text(added["content"])
        for call in added.get("tool_calls") or []:
            events += self._call(call)
        if choice.get("finish_reason"):
            self._ended(choice)
        return events

    @abstractmethod
    def end(self, usage: Usage) -> list[Event]:
        """After everything else."""

    @abstractmethod
    def _text(self, text: str) -> list[Event]: ...

    @abstractmethod
    def _call(self, call: Mapping[str, Any]) -> list[Event]:
        """A call's beginning, which has its id, or more of its arguments."""

    @abstractmethod
    def _ended(self, choice: Mapping[str, Any]) -> None:
        """The choice tells why it ends."""
