"""Conversations in files: /save and /load in a chat. A file is JSON: {"messages": [{"role", "content"}, ...]}."""

import json
from collections.abc import Sequence
from pathlib import Path

Message = dict[str, str]


class SavedChatError(Exception):
    """A file that cannot be written or read. One line."""


def save(name: str, messages: Sequence[Message]) -> Path:
    """Write a new file; one that exists is kept. Raises SavedChatError."""
    path = _path(name)
    try:
        with path.open("x", encoding="utf-8") as file:
            json.dump({"messages": list(messages)}, file, ensure_ascii=False, indent=1)
    except OSError as error:
        raise SavedChatError(f"{path}: {error.strerror}") from None
    return path


def load(name: str) -> list[Message]:
    """Read the messages of a file. Raises SavedChatError."""
    path = _path(name)
    try:
        messages = json.loads(path.read_text(encoding="utf-8"))["messages"]
        return [{"role": str(message["role"]), "content": str(message["content"])} for message in messages]
    except OSError as error:
        raise SavedChatError(f"{path}: {error.strerror}") from None
    except (ValueError, LookupError, TypeError):
        raise SavedChatError(
            f"{path} is no saved chat: it should be JSON with messages, each with role and content"
        ) from None


def _path(name: str) -> Path:
    if not name:
        raise SavedChatError("name a file, as in /save chat.json")
    try:
        return Path(name).expanduser()
    except RuntimeError:
        raise SavedChatError(f"{name}: no such user") from None
