"""`smoe serve --batch-dir` with OpenAI's client: a batch survives kill -9, with each line answered once."""

import asyncio
import json
import signal
from pathlib import Path
from typing import Any

import openai

from tests.support.conditions import until
from tests.support.servers.server_process import Server, forked

ANSWERED, HELD = [f"answered-{i}" for i in range(8)], [f"held-{i}" for i in range(4)]


def line(name: str, **body: Any) -> str:
    fields = {"model": "m", "prompt": "It was", "max_tokens": 2, **body}
    return json.dumps({"custom_id": name, "method": "POST", "url": "/v1/completions", "body": fields}) + "\n"


def client_of(server: Server) -> openai.OpenAI:
    server.wait_ready()
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="key", max_retries=0)


def test_a_batch_survives_a_kill_and_answers_each_line_once(checkpoint: Path, tmp_path: Path) -> None:
    """The first engine holds all completions; requests that are refused are answered without it."""
    mode = f"once-hold:{tmp_path / 'started'}"
    flags = {"batch_dir": str(tmp_path / "batches"), "api_key": "key"}
    content = "".join([*(line(name, temperature=9) for name in ANSWERED), *map(line, HELD)]).encode()
    with forked(mode, checkpoint, **flags) as server, client_of(server) as client:
        file = client.files.create(file=("in.jsonl", content), purpose="batch")
        assert client.files.content(file.id).content == content
        assert [each.id for each in client.files.list()] == [file.id]
        batch_id = client.batches.create(
            input_file_id=file.id, endpoint="/v1/completions", completion_window="24h", metadata={"job": "1"}
        ).id
        asyncio.run(until(lambda: client.batches.retrieve(batch_id).request_counts.failed == len(ANSWERED)))  # type: ignore[union-attr]
        (journal,) = (tmp_path / "batches" / "running").iterdir()
        before = {json.loads(text)["custom_id"]: json.loads(text)["id"] for text in journal.read_text().splitlines()}
        server.process.send_signal(signal.SIGKILL)
        server.process.wait()
    with forked(mode, checkpoint, **flags) as server, client_of(server) as client:
        asyncio.run(until(lambda: client.batches.retrieve(batch_id).status == "completed"))
        batch = client.batches.retrieve(batch_id)
        good, bad = (results(client, file_id) for file_id in (batch.output_file_id, batch.error_file_id))
        assert [each.id for each in client.batches.list()] == [batch_id] and batch.metadata == {"job": "1"}
        assert client.files.delete(file.id).deleted
    assert sorted(good) == sorted(HELD)
    assert bad == before and sorted(before) == sorted(ANSWERED)
    assert not list((tmp_path / "batches" / "running").iterdir())


def results(client: openai.OpenAI, file_id: str | None) -> dict[str, str]:
    """Return the ids of a file's answers by custom id."""
    assert file_id is not None
    lines = [json.loads(text) for text in client.files.content(file_id).text.splitlines()]
    assert len({each["custom_id"] for each in lines}) == len(lines)
    return {each["custom_id"]: each["id"] for each in lines}


def test_a_folder_that_cannot_be_used_ends_the_start_with_one_line(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with forked("count", checkpoint, batch_dir=str(tmp_path / "file")) as server:
        assert "smoe: --batch-dir" in server.read_until("smoe: ")
        assert server.exit_code() == 1
