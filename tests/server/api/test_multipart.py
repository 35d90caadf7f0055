"""server/api/multipart.py: forms are read byte for byte, however they are cut, and malformed ones refused."""

import itertools
import random
from collections.abc import AsyncIterator

import httpx
import pytest

from server.api.multipart import MAX_FIELD_BYTES, MAX_HEAD_BYTES, Part, read_form
from server.errors import ApiError

pytestmark = pytest.mark.anyio

TYPE = "multipart/form-data; boundary=B"
GOOD = b'--B\r\ncontent-disposition: form-data; name="a"\r\n\r\nx\r\n--B--\r\n'


async def read(content_type: str, body: bytes, cuts: list[int] | None = None) -> tuple[dict[str, Part], bytes, int]:
    """Return the fields, the content of the file, and the longest piece of it. `cuts`: where the body is divided."""
    ends = [0, *sorted(cuts or []), len(body)]
    written: list[bytes] = []

    async def pieces() -> AsyncIterator[bytes]:
        for first, end in itertools.pairwise(ends):
            yield body[first:end]

    async def write(piece: bytes) -> None:
        assert piece
        written.append(piece)

    fields = await read_form(content_type, pieces(), "file", write)
    return fields, b"".join(written), max(map(len, written), default=0)


async def test_what_httpx_writes_is_read_byte_for_byte_however_it_is_cut() -> None:
    draw = random.Random(3)
    for _ in range(300):
        content = bytes(draw.choices(b'\r\n-B"; =x\x00\xff', k=draw.randrange(60)))
        request = httpx.Request("POST", "http://a", files={"file": ("é a.jsonl", content)}, data={"purpose": "batch"})
        request.read()
        cuts = [draw.randrange(len(request.content)) for _ in range(draw.choice((0, 1, 5, 200)))]
        fields, found, _ = await read(request.headers["content-type"], request.content, cuts)
        assert fields == {"purpose": Part("", b"batch"), "file": Part("é a.jsonl")}
        assert found == content


async def test_a_file_is_written_as_it_arrives() -> None:
    content = b"\r\n--" + b"x" * 100_000
    request = httpx.Request("POST", "http://a", files={"file": ("a", content)})
    request.read()
    _, found, longest = await read(
        request.headers["content-type"], request.content, list(range(0, len(request.content), 1000))
    )
    assert found == content and longest < 1200


async def test_a_preamble_an_epilogue_and_a_quoted_boundary_are_legal() -> None:
    fields, _, _ = await read('multipart/form-data; boundary="B"', b"hello\r\n" + GOOD + b"bye")
    assert fields == {"a": Part("", b"x")}


@pytest.mark.parametrize(
    ("parameters", "name", "filename"),
    [
        ("name=a; filename=b.jsonl", "a", "b.jsonl"),  # bare words, as small HTTP libraries write
        ('NAME="a"; FileName="b c;d.jsonl"', "a", "b c;d.jsonl"),
        (r'filename="name=\"z\""; name="a"', "a", 'name="z"'),
        ("name=\"a\"; filename*=UTF-8''na%C3%AFve.jsonl", "a", "naïve.jsonl"),
        (r'filename="x\\"; name="a"', "a", "x\\"),
        (r'filename="x;y\\"; name="a";', "a", "x;y\\"),
        (r'name="a"; filename="\"x\""', "a", '"x"'),
        (r'name="a"; filename="C:\dir\x.txt"', "a", r"C:\dir\x.txt"),  # old browsers
        ('name="a"; filename="a%22b.txt"', "a", "a%22b.txt"),  # what browsers write for a quote
        ("name*=b%20c; filename*=it's%20d", "b c", "it's d"),
        ("name=a; filename*=''na%C3%AFve", "a", "naïve"),
        ("name=a; filename*=ISO-8859-1'en'%e9'", "a", "é'"),
        ("name=a; filename*=us-ascii''x%E9", "a", "x\ufffd"),
        ("name=a; filename*=utf-8''%ED%A0%80x", "a", "\ufffd\ufffd\ufffdx"),  # a surrogate
        ("name=a; filename*=utf-8''é€😀", "a", "é€😀"),
        ("name*0=a; name*1=%62; filename*1*=%AF; filename*0*=utf-8''%C3", "a%62", "ï"),
        ("name=a; name=b; filename=c; filename*=utf-8''d", "a", "c"),
    ],
)
async def test_parameters_are_read_in_each_of_their_spellings(parameters: str, name: str, filename: str) -> None:
    fields, _, _ = await read(TYPE, GOOD.replace(b'name="a"', parameters.encode()))
    assert fields == {name: Part(filename, b"x")}


@pytest.mark.parametrize("parameters", ["", "; filename", '; filename="', "; filename*=utf-8''", "; filename*0="])
@pytest.mark.parametrize("text", [";", "\\", '"', "'", "=", " ", "*", "%", '\\"', '";', '="', ' ="\\'])
async def test_any_text_after_the_name_is_read_or_refused(parameters: str, text: str) -> None:
    line = 'name="a"' + parameters + text * ((MAX_HEAD_BYTES - 100) // len(text))
    for end in ("", '"', ";", "x"):
        try:
            fields, _, _ = await read(TYPE, GOOD.replace(b'name="a"', (line + end).encode()))
        except ApiError as error:
            assert (error.status, error.code) == (400, "invalid_form")
        else:
            assert fields.keys() == {"a"}


BAD_PARAMETERS = (
    b"name=file; filename*=unicode_escape''%5Cud800",  # a lone surrogate
    b"name=file; filename*=utf-7''+2AA-",  # one too
    b"name*=unicode_escape''%5Cud800",
    b"name=file; filename*=idna''x",
    b"name=file; filename*=undefined''x",
    b"name=file; filename*=punycode''x%FF",
    b"name=file; filename*=a%00b''x",
    b"name=file; filename*=a\0b''x",
    b"name=file; filename*=a; filename*0=b",
    b"name=file; filename=x; filename*=a; filename*0=b",
    b"name*=a; name*0=b",
    b"name=file; filename*0=a; filename*2=b",
    b"name=file; filename*0=a; filename*0*=b",
    b"name=file; filename*x=a",
    b'name=file; filename="x',
    b'name=file; filename="x\\"',
    b'name=file; filename="x"y',
    b'name=file; filename=x"y',
    b"name",
)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"x",
        GOOD.removesuffix(b"--\r\n"),
        GOOD.replace(b'name="a"', b"named"),
        GOOD.replace(b'name="a"', rb'filename="name=\"a\""'),
        *(GOOD.replace(b'name="a"', parameters) for parameters in BAD_PARAMETERS),
        GOOD.replace(b"\r\n\r\n", b"\r\n"),
        GOOD.replace(b"--B--", GOOD),
        GOOD.replace(b"--B--\r\n", b"") * 17 + b"--B--",
        GOOD.replace(b"--B\r\n", b"--Bx\r\n"),
        GOOD.replace(b"x", b"x" * (MAX_FIELD_BYTES + 1)),
        GOOD.replace(b"\r\n\r\n", b"\r\na: " + b"b" * MAX_HEAD_BYTES + b"\r\n\r\n"),
        b"--B\r\n" + b"a" * MAX_HEAD_BYTES * 2,
    ],
    ids=lambda body: repr(body)[:100],
)
async def test_a_malformed_form_is_refused(body: bytes) -> None:
    for cuts in ([], list(range(len(body)))):
        with pytest.raises(ApiError) as caught:
            await read(TYPE, body, cuts)
        assert (caught.value.status, caught.value.code) == (400, "invalid_form")


@pytest.mark.parametrize("content_type", ["", "application/json", "multipart/form-data", "multipart/mixed; boundary=B"])
async def test_another_content_type_is_refused(content_type: str) -> None:
    with pytest.raises(ApiError) as caught:
        await read(content_type, GOOD)
    assert caught.value.status == 415
