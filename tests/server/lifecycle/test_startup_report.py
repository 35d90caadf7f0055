"""server/lifecycle/startup_report.py: capacity, URL and a first request in few lines."""

import io
import json

import msgspec
import pytest

from server.engine_client.status import EngineStatus
from server.fairness.budgets import budgets, total_bytes
from server.lifecycle import startup_report
from server.lifecycle.startup_report import StartupReport, lines_when_ready, ready_lines, size
from server.settings.settings import Settings
from tests.support.servers.fake_engine_process import READY
from tests.support.terminal_stream import TerminalStream


@pytest.mark.parametrize(
    ("window", "length", "blocks_each"),
    [(None, 1, 1), (None, 16, 1), (None, 17, 2), (None, 160, 10), (32, 160, 3), (32, 33, 3), (32, 32, 2), (33, 160, 4)],
)
def test_the_number_of_requests_that_fit_follows_from_the_blocks(
    window: int | None, length: int, blocks_each: int
) -> None:
    ready = msgspec.structs.replace(READY, window=window, max_model_len=length)  # 100 blocks of 16 tokens
    lines = ready_lines(
        ready, max_num_seqs=256, budgets="b", url="http://h:1", model_id="m", needs_key=False, seconds=1.0
    )
    assert f"room for {100 // blocks_each:,} requests of {length}" in lines[2]


@pytest.mark.parametrize(
    ("max_num_seqs", "listed"), [(2, "2 requests of 512 or 0 requests of"), (1, "1 request of 512 or")]
)
def test_no_more_requests_are_promised_than_a_step_may_have(max_num_seqs: int, listed: str) -> None:
    ready = msgspec.structs.replace(READY, max_model_len=2048)
    settings = Settings(max_num_seqs=max_num_seqs)
    lines = lines_when_ready(ready, settings, takes_tools=True, url="http://h:1", model_id="m", seconds=1.0)
    assert any(f"room for {listed}" in line for line in lines), lines


@pytest.mark.parametrize(
    ("takes_tools", "is_emulated", "generates", "is_said"),
    [
        (False, False, True, True),
        (True, False, True, False),
        (False, True, True, False),
        (False, False, False, False),
    ],
)
def test_a_model_without_tools_says_how_agents_can_use_it(
    takes_tools: bool, is_emulated: bool, generates: bool, is_said: bool
) -> None:
    ready, settings = msgspec.structs.replace(READY, generates=generates), Settings(tool_emulation=is_emulated)
    lines = lines_when_ready(ready, settings, takes_tools=takes_tools, url="http://h:1", model_id="m", seconds=1.0)
    assert sum("--tool-emulation" in line for line in lines) == is_said and lines[-1].startswith("curl ")


def test_a_length_of_which_no_more_requests_fit_is_not_listed() -> None:
    for window, listed in (
        (None, "room for 3 requests of 512 or 0 requests of 2,048 tokens at"),
        (32, "room for 33 requests of 2,048 tokens at"),
    ):
        ready = msgspec.structs.replace(READY, window=window, max_model_len=2048)  # 100 blocks of 16 tokens
        lines = ready_lines(
            ready, max_num_seqs=256, budgets="b", url="http://h:1", model_id="m", needs_key=False, seconds=1.0
        )
        assert listed in lines[2]


def test_the_last_lines_are_url_model_id_and_a_request_to_paste() -> None:
    lines = ready_lines(
        READY,
        max_num_seqs=256,
        budgets="b",
        url="http://127.0.0.1:1",
        model_id="smoe-demo",
        needs_key=False,
        seconds=1.0,
    )
    assert [line[:10].strip() for line in lines[:-1]] == ["model", "memory", "capacity", "requests", "serving"]
    assert "Ctrl-C" in lines[-2]
    assert "smoe-demo" in lines[-2]
    assert "http://127.0.0.1:1" in lines[-2]
    assert lines[-1].startswith("curl -N http://127.0.0.1:1/v1/completions")
    assert "Authorization" not in lines[-1]


def test_the_request_to_paste_for_a_unix_socket_names_its_path() -> None:
    lines = ready_lines(
        READY, max_num_seqs=256, budgets="b", url="unix:/a b", model_id="m", needs_key=False, seconds=1.0
    )
    assert lines[-1].startswith("curl -N --unix-socket '/a b' http://localhost/v1/completions ")
    assert "unix:/a b" in lines[-2] and "browser" not in lines[-2]


def test_the_request_to_paste_has_a_placeholder_for_the_key() -> None:
    lines = ready_lines(
        READY, max_num_seqs=256, budgets="b", url="http://h:1", model_id="m", needs_key=True, seconds=1.0
    )
    assert "Bearer YOUR_KEY" in lines[-1]


def test_the_request_to_paste_to_an_embedding_model_embeds() -> None:
    ready = msgspec.structs.replace(READY, embeds=True, generates=False)
    lines = ready_lines(
        ready, max_num_seqs=256, budgets="b", url="http://h:1", model_id="m", needs_key=False, seconds=1.0
    )
    assert lines[-1].startswith("curl -N http://h:1/v1/embeddings") and '"input": "It was"' in lines[-1]
    assert json.loads(lines[-1].split("-d '")[1].removesuffix("'"))["model"] == "m"


def test_progress_is_at_most_one_line_per_tenth_and_none_for_a_quick_start() -> None:
    now = [0.0]

    def lines(seconds_per_percent: float) -> list[str]:
        stream = io.StringIO()
        report = StartupReport(stream, clock=lambda: now[0])
        for percent in range(101):
            now[0] += seconds_per_percent
            report.progress(EngineStatus("loading", "weights", percent, 100))
        report.progress(EngineStatus("loading", "kv cache"))
        return stream.getvalue().splitlines()

    assert lines(1.0) == [f"weights {tenth}0% of 100 B" for tenth in range(1, 11)]
    assert lines(0.001) == []


def test_a_quick_load_after_a_slow_start_of_the_process_has_no_lines() -> None:
    stream, now = io.StringIO(), [0.0]
    report = StartupReport(stream, clock=lambda: now[0])
    now[0] = 8.0  # torch was imported
    for percent in (10, 55, 100):
        now[0] += 0.01
        report.progress(EngineStatus("loading", "weights", percent, 100))
    report.end_progress(is_complete=True)
    assert stream.getvalue() == ""


@pytest.mark.parametrize(("is_complete", "last"), [(True, "weights 100% of 100 B"), (False, "weights 50% of 100 B")])
def test_only_a_complete_stage_ends_with_100_percent(is_complete: bool, last: str) -> None:
    stream, now = io.StringIO(), iter(range(100))
    report = StartupReport(stream, clock=lambda: float(next(now)))
    for percent in (0, 50):
        report.progress(EngineStatus("loading", "weights", percent, 100))
    report.end_progress(is_complete=is_complete)
    assert stream.getvalue().splitlines()[-1] == last


@pytest.mark.parametrize("stage", ["adapters", "GPU kernels", "CUDA graphs"])
def test_adapters_kernels_and_graphs_are_counted_and_have_no_bytes(stage: str) -> None:
    stream, now = io.StringIO(), iter(range(100))
    report = StartupReport(stream, clock=lambda: float(next(now)))
    for loaded in (0, 5):
        report.progress(EngineStatus("loading", stage, loaded, 10))
    assert stream.getvalue() == f"{stage} 50%\n"


@pytest.mark.parametrize(
    ("num_bytes", "text"), [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (2**30, "1 GiB"), (93 * 2**30, "93 GiB")]
)
def test_sizes_are_readable(num_bytes: int, text: str) -> None:
    assert size(num_bytes) == text


@pytest.mark.parametrize(("share", "is_reduced"), [(1.0, False), (0.0, True)])
def test_the_budgets_are_those_of_the_share_that_the_engine_found(share: float, is_reduced: bool) -> None:
    ready = msgspec.structs.replace(READY, memory_share=share)
    lines = lines_when_ready(ready, Settings(), takes_tools=True, url="http://h:1", model_id="m", seconds=1.0)
    [line] = [line for line in lines if line.startswith("requests")]
    assert f"up to {size(total_bytes(budgets(Settings(), share)))}" in line
    assert ("reduced to fit the memory limit" in line) == is_reduced


def test_least_sizes_that_do_not_fit_are_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(startup_report, "memory_limit_bytes", lambda: 256 << 20)
    ready = msgspec.structs.replace(READY, memory_share=0.0)
    lines = lines_when_ready(ready, Settings(), takes_tools=True, url="http://h:1", model_id="m", seconds=1.0)
    [warning] = [line for line in lines if line.startswith("WARNING")]
    assert "256.0 MiB; lower --kv-cache-memory-bytes" in warning


def test_with_a_log_of_json_every_line_is_json_and_there_is_no_bar() -> None:
    stream = TerminalStream()
    report = StartupReport(stream, style="json")
    report.line("smoe 1 loads m")
    report.line("WARNING: anyone can use this server")
    report.progress(EngineStatus("loading", "weights", 1, 100))
    first, second = map(json.loads, stream.getvalue().splitlines())
    assert (first["level"], first["message"]) == ("info", "smoe 1 loads m")
    assert (second["level"], second["message"]) == ("warning", "anyone can use this server")
