"""server/observability/access_log.py: one line per HTTP request, as text or JSON, errors included."""

import json
import logging

import pytest

from engine.types import Timing
from server.observability.access_log import AccessLog, RequestRecord
from server.observability.log_stream import logging_to
from tests.support.pipes import written
from tests.support.servers.fake_engine import FakeEngine
from tests.support.servers.serving import client_of, saying, state_around


def a_record(outcome: str = "stop", finished_s: float | None = 12.0) -> RequestRecord:
    record = RequestRecord("req-1", "POST", "/v1/completions", "10.0.0.1")
    record.add_choice(
        outcome,  # type: ignore[arg-type]
        num_prompt_tokens=7,
        num_generation_tokens=3,
        num_cached_tokens=5,
        timing=Timing(10.0, 10.25, 10.5, finished_s),
    )
    return record


def test_a_finished_request_is_one_line_of_text(pipe: tuple[int, int]) -> None:
    with logging_to(pipe[1]):
        AccessLog().request_ended(a_record(), 200)
    [line] = written(*pipe)
    assert line.split(" ", 1)[1] == (
        "INFO request finished request_id=req-1 method=POST path=/v1/completions status=200 client=10.0.0.1 "
        "outcome=stop prompt_tokens=7 generation_tokens=3 cached_tokens=5 queue_s=0.25 ttft_s=0.5 total_s=2.0 "
        "tokens_per_s=1.3"
    )


def test_a_finished_request_is_one_json_object(pipe: tuple[int, int]) -> None:
    with logging_to(pipe[1], style="json"):
        AccessLog(clock=lambda: 13.0).request_ended(a_record("abort", finished_s=None), 200)
    [line] = written(*pipe)
    fields = json.loads(line)
    assert fields["request_id"] == "req-1"
    assert fields["outcome"] == "abort"
    assert (fields["prompt_tokens"], fields["generation_tokens"], fields["cached_tokens"]) == (7, 3, 5)
    assert (fields["queue_s"], fields["ttft_s"], fields["total_s"]) == (0.25, 0.5, 3.0)
    assert fields["level"] == "info"


def test_different_outcomes_of_choices_are_joined(pipe: tuple[int, int]) -> None:
    record = a_record()
    for _ in range(2):
        record.add_choice(
            "length",
            num_prompt_tokens=0,
            num_generation_tokens=6,
            num_cached_tokens=0,
            timing=Timing(10.0, 10.1, 10.4, 14.0),
        )
    with logging_to(pipe[1], style="json"):
        AccessLog().request_ended(record, 200)
    [line] = written(*pipe)
    fields = json.loads(line)
    assert (fields["outcome"], fields["choices"], fields["generation_tokens"]) == ("stop+length", 3, 15)
    assert (fields["queue_s"], fields["ttft_s"], fields["total_s"]) == (0.1, 0.4, 4.0)


def shown(caplog: pytest.LogCaptureFixture, level: int = logging.INFO) -> list[dict[str, object]]:
    records = [record for record in caplog.records if record.name == "smoe.access" and record.levelno >= level]
    return [record.fields for record in records]  # type: ignore[attr-defined]


@pytest.mark.anyio
async def test_every_request_is_in_the_log_once_errors_included(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "smoe.access")
    state = state_around(FakeEngine(saying("a")))
    async with client_of(state) as client:
        body = {"prompt": ["x", "long prompt"], "n": 3, "max_tokens": 4, "user": "me"}
        completed = await client.post("/v1/completions", json=body)
        for path, wrong in (
            ("/v1/completions", {"prompt": "x", "n": "many"}),
            ("/v1/chat/completions", {}),
            ("/v1/no", {}),
        ):
            assert (await client.post(path, json=wrong)).status_code in (400, 404)
        assert (await client.get("/v1/completions")).status_code == 405
        assert (await client.get("/health")).status_code == 200
    usage = completed.json()["usage"]
    first, *others = shown(caplog)
    assert first.items() >= {
        "method": "POST", "path": "/v1/completions", "status": 200, "client": "127.0.0.1", "user": "me",
        "request_id": completed.headers["x-request-id"], "choices": 6,
        "prompt_tokens": usage["prompt_tokens"], "generation_tokens": usage["completion_tokens"],
    }.items()  # fmt: skip
    assert [(fields["path"], fields["status"], fields["outcome"]) for fields in others] == [
        ("/v1/completions", 400, "rejected"),
        ("/v1/chat/completions", 400, "rejected"),
        ("/v1/no", 404, "rejected"),
        ("/v1/completions", 405, "rejected"),
    ]
    assert shown(caplog, logging.DEBUG)[-1]["path"] == "/health", "polls are at level debug"


@pytest.mark.anyio
async def test_a_full_queue_is_one_line_and_a_probe_of_a_server_that_loads_is_none(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "smoe.access")
    engine = FakeEngine(saying("a"))
    engine.num_waiting = 8
    state = state_around(engine, max_num_queued=8)
    async with client_of(state) as client:
        assert (await client.post("/v1/completions", json={"prompt": "x", "n": 8})).status_code == 429
    [line] = shown(caplog)
    assert (line["status"], line["outcome"]) == (429, "rejected")
    caplog.clear()
    AccessLog().request_ended(RequestRecord("a", "GET", "/health"), 503, is_probe=True)
    assert shown(caplog) == []
