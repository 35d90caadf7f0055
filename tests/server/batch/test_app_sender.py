"""server/batch/app_sender.py: bodies go into the output as the app wrote them, if they are whole JSON."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from starlette.types import ASGIApp, Receive, Scope, Send

from server.batch.app_sender import app_sender
from server.batch.journal import Journal
from server.batch.lines import BatchLine
from server.batch.runner import Progress, Runner

pytestmark = pytest.mark.anyio


def app_with(chunks: Sequence[bytes], *, status: int = 200, breaks: bool = False) -> ASGIApp:
    """Return an app that answers with the chunks of a body, or fails after them."""

    async def app(_: Scope, __: Receive, send: Send) -> None:
        await send(
            {"type": "http.response.start", "status": status, "headers": [(b"content-type", b"application/json")]}
        )
        for chunk in chunks:
            await send({"type": "http.response.body", "body": chunk, "more_body": True})
        if breaks:
            raise ZeroDivisionError
        await send({"type": "http.response.body", "body": b""})

    return app


async def output(tmp_path: Path, app: ASGIApp) -> str:
    with Journal(tmp_path / "out.jsonl") as journal:
        runner = Runner(app_sender(app, 0, by_priority=False), journal, Progress(1), lambda _: None)
        await runner.run([BatchLine("a", "/v1/completions", {})], 1)
    (line,) = (tmp_path / "out.jsonl").read_text().splitlines()
    return line


async def test_the_body_of_an_answer_is_not_parsed(tmp_path: Path) -> None:
    line = await output(tmp_path, app_with([b'{"a": 1.5', b'0, "a": []}']))
    assert line.endswith(',"error":null,"response":{"status_code":200,"request_id":"","body":{"a": 1.50, "a": []}}}')


@pytest.mark.parametrize(
    ("app", "body"),
    [
        (app_with([b'{"a":'], breaks=True), None),
        (app_with([b'{\n"a":1}']), {"a": 1}),
        (app_with([b'{"error":{"message":"no"}}'], status=400), {"error": {"message": "no"}}),
    ],
    ids=["torn", "lines", "error"],
)
async def test_other_bodies_are_parsed(tmp_path: Path, app: ASGIApp, body: object) -> None:
    answer = json.loads(await output(tmp_path, app))
    assert answer["response"]["body"] == body
    assert (answer["error"] or {}).get("message") == ("no" if answer["response"]["status_code"] == 400 else None)
