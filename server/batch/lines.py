"""Lines of a batch in OpenAI's format: {"custom_id", "method": "POST", "url": "/v1/...", "body": {...}}."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import orjson

from server.errors import ApiError
from server.strict_json import JsonValue, parse_object

PREFIX = "/v1/"
MAX_ID_CHARS = 512  # all ids of a batch are in memory
MAX_BLANK_LINES = 50_000  # of a client's file: one for each request that it may have


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

    def body_bytes(self, **more: JsonValue) -> bytes:
        """Return the body as JSON, with more fields. Without spaces and escapes it is no longer than in its line, but
        for numbers such as 1e5: so a server that took the line in a file takes the body too."""
        return orjson.dumps({**self.body, **more})


def go_on() -> None:
    """Do nothing: the default of `before_each`."""


def read_lines(
    path: Path,
    max_bytes: int | None = None,
    *,
    is_checked: bool = False,
    before_each: Callable[[], None] = go_on,
) -> Iterator[BatchLine]:
    """Yield the requests of a file; blank lines are skipped. Raises LineError, OSError, and what `before_each` raises.

    `max_bytes`: of a line; with it the number of blank lines has a bound, too. `is_checked`: the file was read before,
    so its custom ids are known to differ and none is kept in memory.
    """
    seen: set[str] = set()
    num_blank = 0
    with path.open("rb") as file:
        for number, text in enumerate(_texts(file, max_bytes), start=1):
            before_each()
            if max_bytes is not None and len(text) > max_bytes:
                raise LineError(path, number, f"longer than {max_bytes} bytes, the server's limit for a request")
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
            else:
                num_blank += 1
                if max_bytes is not None and num_blank > MAX_BLANK_LINES:
                    raise LineError(path, number, f"one of more than {MAX_BLANK_LINES} blank lines")


def _texts(file: BinaryIO, max_bytes: int | None) -> Iterator[bytes]:
    """Yield the lines; of one that is too long its beginning, and nothing more."""
    limit = -1 if max_bytes is None else max_bytes + 1
    while text := file.readline(limit):
        yield text
        if len(text) == limit:
            return


def parse_line(text: bytes, number: int = 1) -> BatchLine:
    """Parse one line of a file, which has this number. Raises BatchError, without parts of the line."""
    try:
        fields = parse_object(text)
    except ApiError:
        raise BatchError("not a JSON object") from None
    custom_id, url, body = fields.get("custom_id"), fields.get("url"), fields.get("body")
    if not isinstance(custom_id, str) or not 1 <= len(custom_id) <= MAX_ID_CHARS:
        raise BatchError(f"custom_id must be a text of at most {MAX_ID_CHARS} characters")
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
