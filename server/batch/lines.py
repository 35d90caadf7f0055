"""Lines of a batch in OpenAI's format: {"custom_id", "method": "POST", "url": "/v1/...", "body": {...}}."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from server.errors import ApiError
from server.strict_json import JsonValue, parse_object

PREFIX = "/v1/"


class BatchError(Exception):
    """A batch that cannot be run. One line."""


class LineError(BatchError):
    """A line that is not a request of a batch. `reason` has no part of the file."""

    def __init__(self, path: Path, number: int, reason: str) -> None:
        super().__init__(f"{path}, line {number}: {reason}")
        self.number = number
        self.reason = reason


@dataclass(frozen=True)
class BatchLine:
    """One request of a batch."""

    custom_id: str
    url: str  # path of the endpoint
    body: dict[str, JsonValue]
    number: int = 1  # of the line in its file

    @property
    def body_bytes(self) -> bytes:
        return json.dumps(self.body).encode()


def read_lines(path: Path, *, is_checked: bool = False) -> Iterator[BatchLine]:
    """Yield the requests of a file; blank lines are skipped. Raises LineError, OSError.

    `is_checked`: the file was read before, so its custom ids are known to differ and none is kept in memory.
    """
    seen: set[str] = set()
    with path.open("rb") as file:
        for number, text in enumerate(file, start=1):
            if text.strip():
                try:
                    line = parse_line(text, number)
                except BatchError as error:
                    raise LineError(path, number, str(error)) from None
                if line.custom_id in seen:
                    raise LineError(path, number, "the custom_id of an earlier line")
                if not is_checked:
                    seen.add(line.custom_id)
                yield line


def parse_line(text: bytes, number: int = 1) -> BatchLine:
    """Parse one line of a file, which has this number. Raises BatchError, without parts of the line."""
    try:
        fields = parse_object(text)
    except ApiError:
        raise BatchError("not a JSON object") from None
    custom_id, url, body = fields.get("custom_id"), fields.get("url"), fields.get("body")
    if not isinstance(custom_id, str) or not custom_id:
        raise BatchError("custom_id must be a text")
    if fields.get("method") != "POST":
        raise BatchError('method must be "POST"')
    if not isinstance(url, str) or not url.startswith(PREFIX) or not url.isascii() or not url.isprintable():
        raise BatchError(f"url must be a path that starts with {PREFIX}")
    if " " in url:
        raise BatchError("url must have no spaces")
    if not isinstance(body, dict):
        raise BatchError("body must be an object")
    if body.get("stream"):
        raise BatchError("body.stream must not be true: a batch has whole replies")
    return BatchLine(custom_id, url, body, number)
