"""Parse bodies of multipart/form-data (RFC 7578), which clients send to upload files."""

import re
from dataclasses import dataclass

from server.errors import ApiError

MAX_PARTS = 16
BOUNDARY = re.compile(r'multipart/form-data\s*;.*\bboundary=(?:"([^"]{1,70})"|([^\s;"]{1,70}))', re.IGNORECASE)
NAME = re.compile(rb'[;\s]name="([^"\r\n]*)"', re.IGNORECASE)
FILENAME = re.compile(rb'[;\s]filename="((?:[^"\\\r\n]|\\.)*)"', re.IGNORECASE)


@dataclass(frozen=True)
class Part:
    """One field of a form. `filename` is empty for fields that are no files."""

    filename: str
    content: bytes


def parse_multipart(content_type: str, body: bytes) -> dict[str, Part]:
    """Return the fields by name. Raises ApiError 400 or 415."""
    match = BOUNDARY.match(content_type)
    if match is None:
        message = "Send a form with 'Content-Type: multipart/form-data; boundary=...'."
        raise ApiError(message, status=415, param="Content-Type", code="unsupported_content_type")
    delimiter = b"\r\n--" + (match[1] or match[2]).encode("latin-1", "replace")
    pieces = (b"\r\n" + body).split(delimiter, MAX_PARTS + 2)
    if len(pieces) < 2 or len(pieces) > MAX_PARTS + 2 or not pieces[-1].startswith(b"--"):
        raise _malformed()
    parts = [_part(piece) for piece in pieces[1:-1]]
    fields = dict(parts)
    if len(fields) != len(parts):
        raise _malformed()
    return fields


def _part(piece: bytes) -> tuple[str, Part]:
    """Parse what lies between two delimiters: the rest of the delimiter's line, headers, an empty line, the content."""
    padding, _, rest = piece.partition(b"\r\n")
    head, separator, content = rest.partition(b"\r\n\r\n")
    lines = [line for line in head.split(b"\r\n") if line.lower().startswith(b"content-disposition:")]
    name = NAME.search(lines[0]) if len(lines) == 1 else None
    if padding.strip(b" \t") or not separator or name is None:
        raise _malformed()
    filename = FILENAME.search(lines[0])
    return _text(name[1]), Part(_text(filename[1]) if filename else "", content)


def _text(value: bytes) -> str:
    return value.decode("utf-8", "replace")


def _malformed() -> ApiError:
    return ApiError("The body is not a form of at most 16 fields with different names.", code="invalid_form")
