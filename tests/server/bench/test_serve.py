"""`smoe bench serve` against the real app over a socket."""

import asyncio
import io
import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from server.bench.http_client import HttpError
from server.bench.progress import RunProgress
from server.bench.serve import measure, parse_options
from server.bench.workload import WorkloadError
from server.cli.main import app
from tests.support.servers.fake_engine import FakeEngine
from tests.support.servers.serving import listening, state_around

DEFAULTS: dict[str, Any] = {
    "url": "http://127.0.0.1:1",
    "model": None,
    "api": "completions",
    "api_key": None,
    "clients": "2",
    "rate": None,
    "trace": None,
    "requests": 7,
    "prompt": "tokens",
    "prompt_tokens": "3,9",
    "output_tokens": "5,6",
    "vocab_size": 2000,
    "no_ignore_eos": False,
    "warmup": 1,
    "seed": 0,
    "label": None,
}
SPREAD = {"mean", "p50", "p90", "p99", "max"}


def measured(engine: FakeEngine, **given: Any) -> dict[str, Any]:
    async def scenario() -> dict[str, Any]:
        async with asyncio.timeout(30), listening(state_around(engine)) as url:
            return await measure(parse_options(DEFAULTS | {"url": url} | given), io.StringIO())

    return asyncio.run(scenario())


def endless() -> FakeEngine:
    return FakeEngine(lambda request: range(300, 600))


@pytest.mark.parametrize("api", ["completions", "chat"])
def test_each_client_count_is_a_run_with_the_tokens_that_the_engine_generated(api: str) -> None:
    engine = endless()
    result = measured(engine, api=api, clients="1,4")
    assert [(run["clients"], run["requests"], run["errors"]) for run in result["runs"]] == [(1, 7, 0), (4, 12, 0)]
    _, *submitted = engine.submitted
    for run, requests in zip(result["runs"], (submitted[:7], submitted[7:]), strict=True):
        assert run["input_tokens"] == sum(len(request.prompt_token_ids) for request in requests)
        assert run["output_tokens"] == sum(request.params.max_tokens for request in requests)
        assert {request.params.max_tokens for request in requests} == {5, 6}
        assert run["output_tokens_per_s"] == pytest.approx(run["output_tokens"] / run["seconds"])
        assert set(run["ttft_s"]) == set(run["gap_s"]) == set(run["total_s"]) == SPREAD
        assert 0 < run["ttft_s"]["p50"] <= run["total_s"]["p50"]
    assert all(request.params.ignore_eos and request.params.temperature == 0 for request in submitted)
    json.dumps(result)


def test_a_rate_sends_requests_when_they_are_due_without_waiting_for_responses() -> None:
    result = measured(endless(), rate=500.0)
    [run] = result["runs"]
    assert (run["load"], run["clients"], run["requests"], run["errors"]) == ("500 per s", None, 7, 0)


def test_the_requests_of_a_trace_have_its_lengths(tmp_path: Path) -> None:
    trace = tmp_path / "trace.jsonl"
    lengths = [(3, 2), (8, 4), (5, 1)]
    lines = [{"arrival_s": 0.01 * i, "prompt_tokens": p, "output_tokens": o} for i, (p, o) in enumerate(lengths)]
    trace.write_text("\n".join(map(json.dumps, lines)))
    engine = endless()
    [run] = measured(engine, trace=trace, warmup=0)["runs"]
    assert [(len(r.prompt_token_ids), r.params.max_tokens) for r in engine.submitted] == lengths
    assert (run["input_tokens"], run["output_tokens"]) == (16, 7)


def test_failed_requests_are_counted_with_their_messages() -> None:
    engine = endless()
    engine.num_waiting = 10_000
    [run] = measured(engine, warmup=0)["runs"]
    assert (run["requests"], run["errors"], run["output_tokens"]) == (7, 7, 0)
    [(message, count)] = run["error_messages"].items()
    assert message.startswith("HTTP 429: ") and count == 7


def test_a_server_that_rejects_the_warm_up_is_not_measured() -> None:
    with pytest.raises(HttpError, match="HTTP 404"):
        measured(endless(), model="another")


@pytest.mark.parametrize(
    ("given", "part"),
    [
        ({"api": "images"}, "--api"),
        ({"prompt": "x"}, "--prompt"),
        ({"rate": 0.0}, "--rate"),
        ({"clients": "0"}, "--clients"),
        ({"clients": "1,x"}, "--clients"),
        ({"prompt_tokens": "9,1"}, "--prompt-tokens"),
        ({"url": "ftp://x"}, "ftp"),
    ],
)
def test_an_invalid_option_is_named(given: dict[str, Any], part: str) -> None:
    with pytest.raises(WorkloadError, match=part):
        parse_options(DEFAULTS | given)


def interrupted_after(num_requests: int, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Measure with one client, and cancel as Ctrl-C does when so many requests have ended."""

    async def scenario() -> dict[str, Any]:
        async with asyncio.timeout(30), listening(state_around(endless())) as url:
            options = parse_options(DEFAULTS | {"url": url, "clients": "1,2", "requests": 7})
            measurement = asyncio.create_task(measure(options, io.StringIO()))
            ended: list[RunProgress] = []

            def request_ended(progress: RunProgress) -> None:
                ended.append(progress)
                if len(ended) == num_requests:
                    measurement.cancel()

            monkeypatch.setattr(RunProgress, "request_ended", request_ended)
            return await measurement

    return asyncio.run(scenario())


@pytest.mark.parametrize(
    ("num_requests", "expected"), [(3, [("1 client", 3)]), (8, [("1 client", 7), ("2 clients", 1)])]
)
def test_after_ctrl_c_the_figures_are_of_the_requests_that_had_ended(
    num_requests: int, expected: list[tuple[str, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    result = interrupted_after(num_requests, monkeypatch)
    assert result["interrupted"]
    assert [(run["load"], run["requests"]) for run in result["runs"]] == expected
    assert all(run["output_tokens"] > 0 for run in result["runs"])


def test_ctrl_c_prints_the_table_and_has_its_exit_code(monkeypatch: pytest.MonkeyPatch) -> None:
    result = interrupted_after(3, monkeypatch)

    async def measured_until_then(*_: object) -> dict[str, Any]:
        return result

    monkeypatch.setattr("server.bench.serve.measure", measured_until_then)
    printed = command("serve", "http://127.0.0.1:1")
    assert (printed.exit_code, printed.stderr.count("\n")) == (130, 1)
    assert "1 client" in printed.stdout and "interrupted" in printed.stderr


def command(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["bench", *arguments])


def test_an_unreachable_server_is_one_line_and_exit_code_2() -> None:
    result = command("serve", "http://127.0.0.1:1")
    assert result.exit_code == 2
    assert result.stderr.startswith("smoe: ") and result.stderr.count("\n") == 1
