"""Read bodies of multipart/form-data (RFC 7578), which clients send to upload files, piece by piece."""

import re
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from urllib.parse import unquote_to_bytes

from server.errors import ApiError

MAX_PARTS = 16
MAX_HEAD_BYTES = 4096  # of a part's headers
MAX_FIELD_BYTES = 4096  # of a field that is no file
BOUNDARY = re.compile(r'multipart/form-data\s*;.*\bboundary=(?:"([^"]{1,70})"|([^\s;"]{1,70}))', re.IGNORECASE)
# A parameter of a header, and its value in quotes or without. It never goes back, so time is linear in the length.
PARAMETER = re.compile(r';([^=;"]*+)(?:=\s*+(?:"((?:[^"\\]|\\.)*+)"\s*+|([^;"]*+)))?+', re.DOTALL)
ESCAPED = re.compile(r'\\(["\\])')  # other backslashes are themselves: browsers send C:\dir\x.txt
# Of encoded values, with Python's names. Other codecs of Python may raise anything, or return lone surrogates.
CHARSETS = {"": "utf-8", "utf-8": "utf-8", "us-ascii": "ascii", "iso-8859-1": "latin-1"}

Write = Callable[[bytes], Awaitable[None]]


@dataclass(frozen=True)
class Part:
    """One field of a form. `filename` is empty for fields that are no files, and `content` for the one that is."""

    filename: str
    content: bytes = b""


async def read_form(content_type: str, pieces: AsyncIterator[bytes], file_field: str, write: Write) -> dict[str, Part]:
    """Return the fields by name; the content of the field `file_field` goes to `write`, as it arrives.

    Raises ApiError 400 or 415.
    """
    match = BOUNDARY.match(content_type)
    if match is None:
        message = "Send a form with 'Content-Type: multipart/form-data; boundary=...'."
        raise ApiError(message, status=415, param="Content-Type", code="unsupported_content_type")
    delimiter = b"\r\n--" + (match[1] or match[2]).encode("latin-1", "replace")
    body = _Body(pieces, delimiter)
    await body.read_content(_ignore)  # what precedes the first delimiter
    fields: dict[str, Part] = {}
    while not await body.is_at_end():
        name, filename = _described(await body.read_head())
        if name in fields or len(fields) == MAX_PARTS:
            raise _malformed()
        if name == file_field:
            await body.read_content(write)
            fields[name] = Part(filename)
        else:
            field = _Field()
            await body.read_content(field.add)
            fields[name] = Part(filename, bytes(field.content))
    await body.skip()
    return fields


class _Body:
    """The body, of which only what is not yet decided about is kept."""

    def __init__(self, pieces: AsyncIterator[bytes], delimiter: bytes) -> None:
        self._pieces = pieces
        self._delimiter = delimiter
        self._kept = bytearray(b"\r\n")  # the first delimiter may be without a line before it

    async def read_content(self, write: Write) -> None:
        """Give everything before the next delimiter to `write`, and pass the delimiter."""
        while (end := self._kept.find(self._delimiter)) < 0:
            num_certain = max(0, len(self._kept) - len(self._delimiter) + 1)
            if num_certain:
                await write(self._taken(num_certain))
            await self._read_more()
        if end:
            await write(self._taken(end))
        self._taken(len(self._delimiter))

    async def is_at_end(self) -> bool:
        """Return whether the delimiter that was passed is the last one."""
        while len(self._kept) < 2:
            await self._read_more()
        return self._kept.startswith(b"--")

    async def read_head(self) -> bytes:
        """Return the rest of the delimiter's line, and the headers behind it. Pass the empty line."""
        while (end := self._kept.find(b"\r\n\r\n")) < 0:
            if len(self._kept) > MAX_HEAD_BYTES:
                raise _malformed()
            await self._read_more()
        head = self._taken(end)
        self._taken(4)
        if len(head) > MAX_HEAD_BYTES or self._delimiter in head:
            raise _malformed()
        return head

    async def skip(self) -> None:
        """Read what follows the last delimiter."""
        async for _ in self._pieces:
            pass

    def _taken(self, num_bytes: int) -> bytes:
        taken = bytes(self._kept[:num_bytes])
        del self._kept[:num_bytes]
        return taken

    async def _read_more(self) -> None:
        try:
            self._kept += await anext(self._pieces)
        except StopAsyncIteration:
            raise _malformed() from None


class _Field:
    """The content of a field that is no file."""

    def __init__(self) -> None:
        self.content = bytearray()

    async def add(self, piece: bytes) -> None:
        self.content += piece
        if len(self.content) > MAX_FIELD_BYTES:
            raise _malformed()


async def _ignore(piece: bytes) -> None:
    """Take a piece that is no part of any field."""


def _described(head: bytes) -> tuple[str, str]:
    """Return the field's name and its file's."""
    padding, _, headers = head.partition(b"\r\n")
    lines = [line for line in headers.split(b"\r\n") if line.lower().startswith(b"content-disposition:")]
    if padding.strip(b" \t") or len(lines) != 1:
        raise _malformed()
    parameters = _parameters(lines[0].decode("utf-8", "replace"))
    name = _value(parameters, "name")
    if name is None:
        raise _malformed()
    return name, (_value(parameters, "filename") or "").strip()


def _parameters(header: str) -> dict[str, str]:
    """Return the values of a header's parameters by their names in small letters; the first one of each name counts."""
    values: dict[str, str] = {}
    start = header.find(";")
    while 0 <= start < len(header):
        match = PARAMETER.match(header, start)
        if match is None:  # something follows a value in quotes, or a quote is not closed
            raise _malformed()
        name, quoted, bare = match.groups()
        if quoted is not None:
            values.setdefault(name.strip().lower(), ESCAPED.sub(r"\1", quoted))
        elif bare is not None:
            values.setdefault(name.strip().lower(), bare.strip())
        start = match.end()
    return values


def _value(parameters: dict[str, str], name: str) -> str | None:
    """Return a parameter's value. If there is one that is neither encoded nor divided (RFC 2231), it is that one."""
    segments = {key.removeprefix(name): value for key, value in parameters.items() if key.startswith(name + "*")}
    joined = _joined(segments) if segments else None
    return parameters.get(name, joined)


def _joined(segments: dict[str, str]) -> str:
    """Return the value of "*", or of "*0", "*1" and so on; those with a star at the end are encoded (RFC 2231)."""
    if segments.keys() == {"*"}:
        segments = {"*0*": segments["*"]}
    keys = [f"*{number}" if f"*{number}" in segments else f"*{number}*" for number in range(len(segments))]
    if segments.keys() != set(keys):
        raise _malformed()
    charset, texts = "", [segments[key] for key in keys]
    if any(key.endswith("*") for key in keys) and texts[0].count("'") >= 2:
        charset, _, texts[0] = texts[0].split("'", 2)
    if charset.lower() not in CHARSETS:
        raise _malformed()
    pairs = zip(keys, texts, strict=True)
    value = b"".join(unquote_to_bytes(text) if key.endswith("*") else text.encode() for key, text in pairs)
    return value.decode(CHARSETS[charset.lower()], "replace")


def _malformed() -> ApiError:
    return ApiError("The body is not a form of at most 16 fields with different names.", code="invalid_form")
