"""`smoe bench steps`: what it keeps of a server's step log, and the command with a real server."""

import asyncio
import contextlib
import io
import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from typer.testing import CliRunner

from engine.planning.fitted_steps import read_fitted
from engine.planning.logged_steps import LoggedRequest, LoggedStep
from engine.planning.step_shape import StepShape
from server.bench import step_calibration
from server.bench.http_client import Endpoint, HttpError
from server.bench.step_calibration import Calibration, measure, table
from server.bench.workload import Range
from server.cli.main import app
from server.cli.run import own_server
from tests.support.servers.fake_engine import FakeEngine
from tests.support.servers.serving import listening, state_around

REQUEST = LoggedRequest(0.0, 5, 3)
FIRST, NEXT = StepShape(5, 1, 0, 15), StepShape(1, 1, 6, 0)


def logged(path: Path, num_requests: int) -> list[LoggedStep]:
    """Write the log of requests one after the other: a step of 1 us for the prompt, then two tokens."""
    steps = []
    for number in range(num_requests):
        steps.append(LoggedStep(float(number), 1e-6, FIRST, [REQUEST]))
        steps += [LoggedStep(number + 0.5, 2e-6, NEXT), LoggedStep(number + 0.6, 2e-6, NEXT)]
    path.write_bytes(b"".join(msgspec.json.encode(step) + b"\n" for step in steps))
    return steps


def measured(engine: FakeEngine, log: Path, *clients: int) -> tuple[dict[str, Any], str]:
    calibration = Calibration(clients, 0.0, Range(5, 5), Range(3, 3), 2000)
    progress = io.StringIO()

    async def scenario() -> dict[str, Any]:
        async with asyncio.timeout(30), listening(state_around(engine)) as url:
            return await measure(Endpoint.parse(url, None), log, calibration, progress)

    return asyncio.run(scenario()), progress.getvalue()


def test_each_loop_has_its_clients_and_the_warm_up_is_left_out(tmp_path: Path) -> None:
    engine, log = FakeEngine(lambda request: range(300, 600)), tmp_path / "steps.jsonl"
    steps = logged(log, 60)
    figures, progress = measured(engine, log, 1, 4)
    assert len(engine.submitted) == 2 + 3 * 1 + 3 * 4
    assert all(len(request.prompt_token_ids) == 5 for request in engine.submitted)
    assert progress.splitlines() == ["steps: 1 client, 0 s", "steps: 4 clients, 0 s"]
    assert msgspec.convert(figures["steps"], list[LoggedStep]) == steps[2 * 3 :]
    assert 0 < figures["request_s"] < 5  # the first token of the only client, without 1 us of its step
    assert read_fitted(json.loads(json.dumps(figures))).shape_s(NEXT) == pytest.approx(2e-6, rel=0.01)


def test_without_a_single_client_a_request_takes_no_time_of_its_own(tmp_path: Path) -> None:
    log = tmp_path / "steps.jsonl"
    logged(log, 60)
    figures, _ = measured(FakeEngine(lambda request: range(300, 600)), log, 4, 1)
    assert figures["request_s"] == 0.0


def test_without_a_server_there_is_nothing_to_measure(tmp_path: Path) -> None:
    calibration = Calibration((1,), 0.0, Range(5, 5), Range(3, 3), 2000)
    with pytest.raises(HttpError, match="no server at"):
        asyncio.run(measure(Endpoint.parse("http://127.0.0.1:1", None), tmp_path / "log", calibration, io.StringIO()))


def test_the_table_has_a_line_for_each_power_of_two(tmp_path: Path) -> None:
    log = tmp_path / "steps.jsonl"
    logged(log, 60)
    figures, _ = measured(FakeEngine(lambda request: range(300, 600)), log, 4)
    head, one, few, last = table(figures).splitlines()
    assert (head.split(), one.split(), few.split()) == (
        ["rows", "steps", "mean", "ms", "fitted"],
        ["1", "116", "0.00", "0.00"],
        ["4", "to", "7", "58", "0.00", "0.00"],
    )
    assert last == "a request takes 0.0 ms beside its steps"


@pytest.mark.usefixtures("clean_environment")
def test_the_command_measures_a_server_and_plan_reads_it(tmp_path: Path) -> None:
    flags = ["smoe-demo", "--threads", "1", "--max-num-batched-tokens", "64", "--kv-cache-memory-bytes", "64MiB"]
    load = ["--seconds", "0.1", "--clients", "1,3", "--prompt-tokens", "8,100", "--output-tokens", "20", "--json"]
    measured = CliRunner().invoke(app, ["bench", "steps", *flags, *load])
    assert measured.exit_code == 0, measured.output
    path = tmp_path / "steps.json"
    path.write_text(measured.stdout)
    steps = json.loads(measured.stdout)["steps"]
    assert max(step["shape"]["num_rows"] for step in steps) == 64
    lengths = ["--prompt-tokens", "8,100", "--output-tokens", "20", "--slo-ttft", "60", "--slo-gap", "60"]
    planned = CliRunner().invoke(app, ["plan", "smoe-demo", "--rate", "1", "--steps", str(path), *lengths])
    assert planned.exit_code == 0, planned.output
    assert "verdict: 1 server is enough" in planned.stdout


@pytest.mark.usefixtures("clean_environment")
@pytest.mark.parametrize("flags", [[], ["--json"]])
def test_a_measurement_that_plan_would_refuse_is_not_printed(flags: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    @contextlib.contextmanager
    def no_server(flags: list[str], log: Path) -> Iterator[SimpleNamespace]:
        assert flags[flags.index("--speculation") + 1] == "off"  # as plans are
        yield SimpleNamespace(url="http://127.0.0.1:1", wait_ready=lambda show: None)

    async def too_few(*arguments: object) -> dict[str, Any]:
        return {"kind": "steps", "request_s": 0.0, "steps": msgspec.to_builtins([LoggedStep(0.0, 0.1, NEXT)] * 5)}

    monkeypatch.setattr(own_server, "own_server", no_server)
    monkeypatch.setattr(step_calibration, "measure", too_few)
    result = CliRunner().invoke(app, ["bench", "steps", "smoe-demo", *flags])
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == (
        "smoe: the file of the server's --step-log has 5 steps, where 100 are needed: raise --seconds or "
        "--output-tokens\n"
    )


@pytest.mark.usefixtures("clean_environment")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["/no/such/model"], "/no/such/model"),
        (["smoe-demo", "--clients", "0"], "--clients 0: each count should be 1 or more"),
        (["smoe-demo", "--prompt-tokens", "9,1"], "--prompt-tokens: '9,1' should be 1 or more, the lower number first"),
    ],
)
def test_bad_input_is_one_line(arguments: list[str], message: str) -> None:
    result = CliRunner().invoke(app, ["bench", "steps", *arguments])
    assert result.exit_code == 2
    assert message in result.stderr and len(result.stderr.splitlines()) == 1
