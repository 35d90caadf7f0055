"""Bad requests below the level of JSON, sent over a socket: each gets an error in the API's format."""

import contextlib
import json
from dataclasses import dataclass, field

import pytest

from server.http.protocol import MAX_HEAD_BYTES
from server.observability.log_rate_limit import MAX_LINES, LogRateLimit
from tests.server.http.test_protocol import opened
from tests.support.servers.fake_engine import FakeEngine
from tests.support.servers.serving import MODEL, http_counts, listening, outcomes, saying, state_around

pytestmark = pytest.mark.anyio

GOOD = json.dumps({"model": MODEL, "prompt": "a", "max_tokens": 4}).encode()
JSON = ("content-type: application/json",)


@dataclass(frozen=True)
class Row:
    """A request, and the expected status and error code."""

    name: str
    status: int
    code: str
    line: str = "POST /v1/completions"
    headers: tuple[str, ...] = ()
    body: bytes = b""
    is_declared: bool = True  # with a correct content-length
    answer_headers: dict[str, str] = field(default_factory=dict)


def methods(line: str, allow: str) -> list[Row]:
    answer = {"allow": allow}
    return [
        Row(f"{method} {line}", 405, "method_not_allowed", f"{method} {line}", answer_headers=answer)
        for method in ("BREW", "TRACE", "DELETE", "PUT", "PATCH", "OPTIONS")
    ]


READ = {"allow": "GET, HEAD"}

ROWS = [
    Row("a path of 60 KiB", 404, "unknown_url", f"GET /{'a' * 60_000}"),
    *methods("/v1/completions", "POST"),
    *methods("/v1/models", "GET, HEAD"),
    Row("CONNECT", 404, "unknown_url", "CONNECT x:1"),
    Row("a byte over the limit", 413, "request_too_large", headers=JSON, body=b" " * ((1 << 20) + 1)),
    Row(
        "10 GiB declared", 413, "request_too_large",
        headers=(*JSON, "content-length: 10737418240"), is_declared=False,
    ),
    Row("gzip", 415, "unsupported_content_encoding", headers=(*JSON, "content-encoding: gzip"), body=b"\x1f\x8b"),
    Row(
        "a 100-continue for too much", 413, "request_too_large",
        headers=(*JSON, "expect: 100-continue", "content-length: 2000000"), is_declared=False,
    ),
    *(
        Row(f"content type {kind}", 415, "unsupported_content_type", headers=(f"content-type: {kind}",), body=GOOD)
        for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x")
    ),
    Row("no type", 415, "unsupported_content_type", body=GOOD),
    Row("two types", 415, "unsupported_content_type", headers=(*JSON, *JSON), body=GOOD),
    *(
        Row(f"path {path}", 404, "unknown_url", f"GET {path}")
        for path in ("/v1//models", "/V1/models", "/v1/models/", "/v1/../metrics", "/%2e%2e/etc/passwd", "/health%00")
    ),
    Row("an unknown path", 404, "unknown_url", "GET /nowhere"),
    Row("GET on POST", 405, "method_not_allowed", "GET /v1/completions", answer_headers={"allow": "POST"}),
    Row("POST on GET", 405, "method_not_allowed", "POST /v1/models", JSON, GOOD, answer_headers=READ),
    Row("a model that is a path", 404, "model_not_found", "GET /v1/models/../../etc/passwd"),
]  # fmt: skip


async def ask(url: str, row: Row) -> tuple[int, dict[str, str], bytes]:
    """Send the request and return status, headers and body of the response."""
    length = (f"content-length: {len(row.body)}",) if row.is_declared else ()
    head = "\r\n".join((f"{row.line} HTTP/1.1", "host: x", *row.headers, *length))
    reader, writer = await opened(url)
    writer.write(f"{head}\r\n\r\n".encode() + row.body)
    first, *lines = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
    headers = dict(line.split(": ", 1) for line in lines if line)
    content = await reader.readexactly(int(headers["content-length"]))
    writer.close()
    return int(first.split(" ")[1]), headers, content


@pytest.mark.parametrize("row", ROWS, ids=[row.name[:40] for row in ROWS])
async def test_a_bad_request_gets_its_error_and_changes_nothing(row: Row) -> None:
    state = state_around(FakeEngine(saying("x")))
    canary = Row("canary", 200, "", headers=JSON, body=GOOD)
    async with listening(state) as url:
        before = (await ask(url, canary))[2]
        status, headers, content = await ask(url, row)
        after = (await ask(url, canary))[2]
    assert status == row.status, content
    assert headers["content-type"] == "application/json" and headers["x-request-id"]
    assert headers.items() >= row.answer_headers.items()
    error = json.loads(content)["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert (error["type"], error["code"]) == ("invalid_request_error", row.code)
    assert b"Traceback" not in content and b"passwd" not in content
    assert [json.loads(text)["choices"] for text in (before, after)] == [json.loads(before)["choices"]] * 2
    assert outcomes(state) == {"received": 2, "stop": 2}


@pytest.mark.parametrize("header", [b"a: " + b"x" * (32 << 20), b"".join(b"h%d: x\r\n" % i for i in range(100_000))])
async def test_endless_heads_are_rejected_at_the_size_limit(header: bytes) -> None:
    """A bounded part of the head is read, then the connection is closed."""
    state = state_around(FakeEngine(saying("x")))
    async with listening(state) as url:
        reader, writer = await opened(url)
        writer.write(b"GET /ping HTTP/1.1\r\nhost: x\r\n" + header[: MAX_HEAD_BYTES + 2000])
        with contextlib.suppress(ConnectionResetError):  # a close with unread bytes may lose the response
            assert (await reader.readline()).startswith(b"HTTP/1.1 431 ")
        writer.close()
        assert (await ask(url, Row("good", 200, "", headers=JSON, body=GOOD)))[0] == 200
    assert [key for key in http_counts(state) if key[2] in ("400", "431")] == [("other", "other", "431")]


async def test_accept_headers_are_ignored() -> None:
    state = state_around(FakeEngine(saying("x")))
    async with listening(state) as url:
        headers = (*JSON, "accept: image/png", "accept-encoding: zzz")
        status, answered, _ = await ask(url, Row("accepts", 200, "", headers=headers, body=GOOD))
    assert (status, answered["content-type"]) == (200, "application/json")


async def test_a_repeated_bad_request_adds_few_log_lines_and_no_series(
    scale: int, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="smoe")
    count = 100 * scale
    state = state_around(FakeEngine(saying("x")))
    bad = Row("bad", 400, "", headers=JSON, body=b"{")
    async with listening(state) as url:
        for _ in range(count):
            assert (await ask(url, bad))[0] == 400
    assert http_counts(state) == {("/v1/completions", "POST", "400"): count}
    assert outcomes(state) == {"received": 0}
    lines = [line for line in caplog.records if line.name.startswith("smoe")]
    assert len(lines) == count
    limit = LogRateLimit(clock=lambda: 0.0)  # in the server it stands before the log
    assert len(list(filter(limit.filter, lines))) == MAX_LINES < count


@pytest.mark.parametrize("body", [b"zebra\r\n", b"2\r\n{}zebra"])
async def test_a_malformed_chunk_right_behind_its_head_gets_one_400_and_no_traceback_in_the_log(
    body: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    """The origin's check has not begun when the 400 is sent; it must not answer again."""
    async with listening(state_around(FakeEngine(saying("x")))) as url:
        reader, writer = await opened(url)
        lines = b"host: x", b"transfer-encoding: chunked", b"sec-fetch-site: cross-site"
        head = b"POST /v1/completions HTTP/1.1\r\n" + b"\r\n".join(lines) + b"\r\n\r\n"
        writer.write(head + body)
        answer = await reader.read()
        writer.close()
    assert answer.startswith(b"HTTP/1.1 400 ") and answer.count(b"\r\n\r\n") == 1
    assert [record.getMessage() for record in caplog.records if record.exc_info] == []


@pytest.mark.parametrize(
    "sent",
    [
        b"HEAD /ping HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\nzebra\r\n",
        b"HEAD http:///ping HTTP/1.1\r\nhost: x\r\n\r\n",
    ],
    ids=["a malformed chunk", "a target without a host"],
)
async def test_a_head_request_that_is_no_valid_http_gets_a_400_without_a_body(
    sent: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    """RFC 9110, section 9.3.2. The length is that of the body that a GET would get."""
    state = state_around(FakeEngine(saying("x")))
    async with listening(state) as url:
        reader, writer = await opened(url, sent)
        answer = await reader.read()
        writer.close()
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400 ") and b"content-length: " in head and body == b""
    assert http_counts(state) == {("other", "other", "400"): 1}
    assert [record.getMessage() for record in caplog.records if record.exc_info] == []
