"""server/batch/app_sender.py: bodies go into the output as the app wrote them, if they are whole JSON."""

import asyncio
import json
import os
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest
from starlette.types import ASGIApp, Receive, Scope, Send

from server.batch.app_sender import app_sender
from server.batch.journal import Journal
from server.batch.lines import BatchLine
from server.batch.runner import INLINE_BYTES, Progress, Runner

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


async def output(tmp_path: Path, app: ASGIApp, ids: str = "a") -> str:
    """Run lines with these ids at once; return the output."""
    with Journal(tmp_path / "out.jsonl") as journal:
        runner = Runner(app_sender(app, 0, by_priority=False), journal, Progress(len(ids)), lambda _: None)
        await runner.run([BatchLine(custom_id, "/v1/completions", {}) for custom_id in ids], len(ids))
    return (tmp_path / "out.jsonl").read_text().removesuffix("\n")


async def test_the_body_of_an_answer_is_not_parsed(tmp_path: Path) -> None:
    line = await output(tmp_path, app_with([b'{"a": 1.5', b'0, "a": []}']))
    assert line.endswith(',"error":null,"response":{"status_code":200,"request_id":"","body":{"a": 1.50, "a": []}}}')


async def test_a_long_answer_is_written_beside_the_event_loop_and_whole_if_the_run_is_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    has_begun, may_go_on = threading.Event(), threading.Event()
    writev = os.writev

    def slow(file: int, pieces: list[memoryview]) -> int:
        has_begun.set()
        assert may_go_on.wait(60)
        return writev(file, pieces)

    monkeypatch.setattr(os, "writev", slow)
    body = json.dumps("x" * INLINE_BYTES).encode()
    run = asyncio.create_task(output(tmp_path, app_with([body]), "abc"))
    await asyncio.to_thread(has_begun.wait, 60)  # the event loop is free
    run.cancel()
    await asyncio.sleep(0)
    may_go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await run
    (line,) = (tmp_path / "out.jsonl").read_bytes().splitlines()
    assert line.endswith(body + b"}}")


async def test_long_answers_are_written_one_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writev, num_writers = os.writev, 0

    def counted(file: int, pieces: list[memoryview]) -> int:
        nonlocal num_writers
        num_writers += 1
        assert num_writers == 1
        written = writev(file, pieces)
        num_writers -= 1
        return written

    monkeypatch.setattr(os, "writev", counted)
    text = await output(tmp_path, app_with([json.dumps("x" * (4 << 20)).encode()]), "abcdefghijkl")
    assert sorted(json.loads(line)["custom_id"] for line in text.splitlines()) == list("abcdefghijkl")


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
