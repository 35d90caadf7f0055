"""server/batch/runner.py: every line is answered once, errors too, and a busy server is asked again."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from server.batch import runner
from server.batch.journal import Journal
from server.batch.lines import BatchError, BatchLine
from server.batch.runner import GIVE_UP_S, Progress, Runner
from server.bench.http_client import Endpoint
from server.cli.run_batch import sender
from server.errors import anthropic_error, queue_timeout
from tests.support.conditions import until
from tests.support.servers.fake_engine import FakeEngine
from tests.support.servers.running import free_port
from tests.support.servers.serving import MODEL, listening, saying, state_around

pytestmark = pytest.mark.anyio


def line(name: str, **body: Any) -> BatchLine:
    return BatchLine(name, "/v1/completions", {"model": MODEL, "prompt": name, **body})


async def run(url: str, out: Path, lines: Iterable[BatchLine], concurrency: int = 4, **options: Any) -> Progress:
    with Journal(out) as journal:
        progress = Progress(0, len(journal.done))
        batch = Runner(sender(Endpoint.parse(url)), journal, progress, lambda _: None, first_wait_s=0.001, **options)
        await batch.run(lines, concurrency)
    return progress


def answers(out: Path) -> dict[str, dict[str, Any]]:
    lines = [json.loads(text) for text in out.read_text().splitlines()]
    assert len({each["custom_id"] for each in lines}) == len(lines)
    return {each["custom_id"]: each for each in lines}


async def test_each_line_is_answered_once_and_later_runs_send_only_the_rest(tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    engine = FakeEngine(saying("fine"))
    async with listening(state_around(engine)) as url:
        await run(url, out, [line(str(i)) for i in range(5)])
        progress = await run(url, out, [line(str(i)) for i in range(9)])
    assert (progress.num_done, progress.num_failed, len(engine.submitted)) == (9, 0, 9)
    found = answers(out)
    assert set(found) == {str(i) for i in range(9)}
    assert found["3"]["response"]["status_code"] == 200 and found["3"]["error"] is None
    assert found["3"]["response"]["body"]["choices"][0]["text"] == " fine"
    assert found["3"]["response"]["request_id"]


async def test_lines_are_read_while_requests_run_and_no_further_than_twice_the_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "LINES_AT_A_TIME", 2)
    read: list[str] = []

    def lines() -> Iterator[BatchLine]:
        for number in range(9):
            read.append(str(number))
            yield line(str(number))

    engine = FakeEngine(saying("fine"), held=True)
    async with listening(state_around(engine)) as url:
        task = asyncio.create_task(run(url, tmp_path / "out.jsonl", lines(), 1))
        await engine.until(lambda: len(engine.submitted) == 1)
        await until(lambda: len(read) == 4)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    assert len(read) == 4


async def test_an_error_is_an_answer(tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    async with listening(state_around(FakeEngine(saying("fine")))) as url:
        bad = [line("bad", temperature=9), BatchLine("lost", "/v1/nothing", {}), line("good")]
        progress = await run(url, out, bad)
    assert (progress.num_done, progress.num_failed) == (3, 2)
    found = answers(out)
    assert [found[name]["response"]["status_code"] for name in ("bad", "lost", "good")] == [400, 404, 200]
    assert "temperature" in found["bad"]["error"]["message"]


@asynccontextmanager
async def scripted(*responses: bytes) -> AsyncIterator[tuple[str, list[bytes]]]:
    """Serve the responses one after the other, the last one for ever; yield the URL and the requests."""
    seen: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
        seen.append(await reader.readexactly(length))
        writer.write(responses[min(len(seen), len(responses)) - 1])
        writer.close()

    port = free_port()
    async with await asyncio.start_server(serve, "127.0.0.1", port):
        yield f"http://127.0.0.1:{port}", seen


OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}"
BUSY = b"HTTP/1.1 429 Too Many Requests\r\ncontent-length: 2\r\nretry-after: 0\r\n\r\n{}"
LOADING = b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 2\r\n\r\n{}"
CUT = b"HTTP/1.1 200 OK\r\ncontent-length: 99\r\n\r\n{}"


async def test_a_busy_server_and_a_cut_answer_are_asked_again(tmp_path: Path) -> None:
    async with scripted(BUSY, LOADING, CUT, b"", OK) as (url, seen):
        await run(url, tmp_path / "out.jsonl", [line("a")])
    assert len(seen) == 5
    assert answers(tmp_path / "out.jsonl")["a"]["response"]["body"] == {}


@pytest.mark.parametrize("error", [queue_timeout(0.0).body(), anthropic_error(queue_timeout(0.0))])
async def test_a_limit_of_the_line_itself_that_has_passed_is_its_answer(tmp_path: Path, error: dict[str, Any]) -> None:
    body = json.dumps(error).encode()
    waited = b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: %d\r\n\r\n%s" % (len(body), body)
    async with scripted(waited, OK) as (url, seen):
        progress = await run(url, tmp_path / "out.jsonl", [line("a", queue_timeout_s=0.001)])
    assert (len(seen), progress.num_failed) == (1, 1)
    answer = answers(tmp_path / "out.jsonl")["a"]
    assert answer["response"]["body"] == error
    assert answer["error"] == {"code": "503", "message": "The request waited longer than its 'queue_timeout_s'."}


async def test_requests_are_sent_as_many_at_a_time_as_wanted(tmp_path: Path) -> None:
    open_now, most = 0, 0
    three = asyncio.Barrier(3)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal open_now, most
        open_now += 1
        most = max(most, open_now)
        await reader.readuntil(b"\r\n\r\n")
        await three.wait()
        open_now -= 1
        writer.write(OK)
        writer.close()

    port = free_port()
    async with await asyncio.start_server(serve, "127.0.0.1", port):
        lines = [line(str(i)) for i in range(9)]
        await run(f"http://127.0.0.1:{port}", tmp_path / "out.jsonl", lines, concurrency=3)
    assert most == 3


async def test_a_server_that_is_gone_ends_the_run_with_one_line(tmp_path: Path) -> None:
    times = iter([0.0, GIVE_UP_S, GIVE_UP_S + 1])
    with pytest.raises(ExceptionGroup) as caught:
        await run(f"http://127.0.0.1:{free_port()}", tmp_path / "out", [line("a")], 1, clock=lambda: next(times))
    [error] = caught.value.exceptions
    assert isinstance(error, BatchError) and str(error).startswith("no answer from http://127.0.0.1:")
