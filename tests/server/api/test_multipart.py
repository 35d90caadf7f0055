"""server/api/multipart.py: forms are parsed byte for byte, and malformed ones refused."""

import random

import httpx
import pytest

from server.api.multipart import Part, parse_multipart
from server.errors import ApiError

TYPE = "multipart/form-data; boundary=B"
GOOD = b'--B\r\ncontent-disposition: form-data; name="a"\r\n\r\nx\r\n--B--\r\n'


def test_what_httpx_writes_is_read_byte_for_byte() -> None:
    draw = random.Random(3)
    for _ in range(200):
        content = bytes(draw.choices(b'\r\n-B"; =x\x00\xff', k=draw.randrange(60)))
        request = httpx.Request("POST", "http://a", files={"file": ("é a.jsonl", content)}, data={"purpose": "batch"})
        request.read()
        found = parse_multipart(request.headers["content-type"], request.content)
        assert found == {"purpose": Part("", b"batch"), "file": Part("é a.jsonl", content)}


def test_a_preamble_an_epilogue_and_a_quoted_boundary_are_legal() -> None:
    assert parse_multipart('multipart/form-data; boundary="B"', b"hello\r\n" + GOOD + b"bye") == {"a": Part("", b"x")}


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"x",
        GOOD.removesuffix(b"--\r\n"),
        GOOD.replace(b'name="a"', b"named"),
        GOOD.replace(b"\r\n\r\n", b"\r\n"),
        GOOD.replace(b"--B--", GOOD),
        GOOD.replace(b"--B--\r\n", b"") * 17 + b"--B--",
    ],
)
def test_a_malformed_form_is_refused(body: bytes) -> None:
    with pytest.raises(ApiError) as caught:
        parse_multipart(TYPE, body)
    assert (caught.value.status, caught.value.code) == (400, "invalid_form")


@pytest.mark.parametrize("content_type", ["", "application/json", "multipart/form-data", "multipart/mixed; boundary=B"])
def test_another_content_type_is_refused(content_type: str) -> None:
    with pytest.raises(ApiError) as caught:
        parse_multipart(content_type, GOOD)
    assert caught.value.status == 415
