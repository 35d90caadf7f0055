"""The turns of a conversation as templates see them: who speaks, what is said, what is called and what came of it."""

import hashlib
import json
import re
from dataclasses import dataclass, field
from typing import Protocol

from server.errors import ApiError
from server.strict_json import JsonValue, check_nesting

CALL_ID_CHARS = 9  # Mistral's models write the ids of calls as so many letters and digits
ALPHANUMERICS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_MISTRAL_ID = re.compile(rf"[A-Za-z0-9]{{{CALL_ID_CHARS}}}")


@dataclass(frozen=True)
class Call:
    """One call of a tool that the assistant asked for."""

    id: str
    name: str
    arguments: dict[str, JsonValue] = field(hash=False)

    def as_mistral(self) -> dict[str, JsonValue]:
        """As it stands in a prompt: the keys in this order."""
        return {"name": self.name, "arguments": self.arguments, "id": self.id}


class Message(Protocol):
    """What a template sees of a message."""

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
    """A message of a repaired conversation. `template_role` is "system", "user", "assistant" or "tool"."""

    template_role: str
    text: str
    calls: tuple[Call, ...] = ()  # of the assistant
    call_id: str = ""  # of a tool: which call this is the result of

    def result(self) -> dict[str, JsonValue]:
        """A tool's answer as it stands in a prompt: JSON as JSON, else the text, for no text an empty object."""
        return {"content": _parsed(self.text), "call_id": self.call_id}


def mistral_id(call_id: str) -> str:
    """An id that Mistral's models know the like of: the id itself if it is one, else one that it determines."""
    return call_id if _MISTRAL_ID.fullmatch(call_id) else short_id(call_id)


def short_id(text: str) -> str:
    """9 letters and digits that the text determines."""
    number = int.from_bytes(hashlib.sha256(text.encode("utf-8", errors="surrogatepass")).digest()[:16], "big")
    characters = ""
    for _ in range(CALL_ID_CHARS):
        number, digit = divmod(number, len(ALPHANUMERICS))
        characters += ALPHANUMERICS[digit]
    return characters


def _parsed(text: str) -> JsonValue:
    if not text:
        return {}
    try:
        check_nesting(text)
        value: JsonValue = json.loads(text)
        json.dumps(value, ensure_ascii=False).encode()  # an escape of half a character could not be tokenized
    except (ValueError, ApiError, RecursionError):
        return text
    return value
