"""Turns of a conversation as chat templates see them: role, text, tool calls and tool results."""

import hashlib
import json
import re
from dataclasses import dataclass, field
from typing import Protocol

from server.errors import ApiError
from server.strict_json import JsonValue, check_nesting

CALL_ID_CHARS = 9  # length of a call's id in Mistral's formats: letters and digits
ALPHANUMERICS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_MISTRAL_ID = re.compile(rf"[A-Za-z0-9]{{{CALL_ID_CHARS}}}")


@dataclass(frozen=True)
class Call:
    """One tool call of the assistant."""

    id: str
    name: str
    arguments: dict[str, JsonValue] = field(hash=False)

    def as_mistral(self) -> dict[str, JsonValue]:
        """Return the call as it appears in a prompt, with the keys in this order."""
        return {"name": self.name, "arguments": self.arguments, "id": self.id}


class PromptTool(Protocol):
    """Tool that a template can write into a prompt."""

    def as_mistral(self) -> dict[str, JsonValue]: ...


class Message(Protocol):
    """Fields of a message that a template needs."""

    @property
    def template_role(self) -> str: ...
    @property
    def text(self) -> str: ...
    @property
    def calls(self) -> tuple[Call, ...]: ...
    @property
    def call_id(self) -> str: ...


@dataclass(frozen=True)
class Turn:
    """Message of a repaired conversation. `template_role` is "system", "user", "assistant" or "tool"."""

    template_role: str
    text: str
    calls: tuple[Call, ...] = ()  # of the assistant
    call_id: str = ""  # of a tool result: id of the call that it answers

    def result(self) -> dict[str, JsonValue]:
        """Return a tool's result as it appears in a prompt: JSON as JSON, other text as a string, no text as {}."""
        return {"content": _parse_result(self.text), "call_id": self.call_id}


def mistral_id(call_id: str) -> str:
    """Return the id itself if it has Mistral's form, else a short id derived from it."""
    return call_id if _MISTRAL_ID.fullmatch(call_id) else short_id(call_id)


def short_id(text: str) -> str:
    """Derive 9 letters and digits from the text; the same text always gives the same id."""
    number = int.from_bytes(hashlib.sha256(text.encode("utf-8", errors="surrogatepass")).digest()[:16], "big")
    characters = ""
    for _ in range(CALL_ID_CHARS):
        number, digit = divmod(number, len(ALPHANUMERICS))
        characters += ALPHANUMERICS[digit]
    return characters


def _parse_result(text: str) -> JsonValue:
    if not text:
        return {}
    try:
        check_nesting(text)
        value: JsonValue = json.loads(text)
        json.dumps(value, ensure_ascii=False).encode()  # a lone surrogate could not be tokenized
    except (ValueError, ApiError, RecursionError):
        return text
    return value
