"""server/bench/trace_file.py: public traces are read as they are; bad lines are named."""

from pathlib import Path

import pytest

from server.bench.trace_file import TracedRequest, TraceError, read_trace_file

AZURE = """TIMESTAMP,ContextTokens,GeneratedTokens
2023-11-16 18:15:50.9951690,4808,10
2023-11-16 18:15:46.6805900,374,44
2023-11-16 18:15:51.6805900,110,0
"""
BURST_GPT = """Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type
5,ChatGPT,472,18,490,Conversation log
45.5,GPT-4,1087,230,1317,API log
118,ChatGPT,417,0,417,Conversation log
"""


def read(tmp_path: Path, text: str) -> list[TracedRequest]:
    path = tmp_path / "trace.csv"
    path.write_text(text, "utf-8")
    return read_trace_file(path)


def test_azures_trace_is_read_by_its_dates_from_the_first_request_on(tmp_path: Path) -> None:
    first, second = read(tmp_path, AZURE)
    assert first == TracedRequest(0.0, 374, 44)
    assert (second.num_prompt_tokens, second.num_output_tokens) == (4808, 10)
    assert second.arrival_s == pytest.approx(4.314579, abs=1e-5)


def test_burst_gpts_trace_is_read_by_its_seconds_and_failed_requests_are_left_out(tmp_path: Path) -> None:
    expected = [TracedRequest(0.0, 472, 18), TracedRequest(40.5, 1087, 230)]
    assert read(tmp_path, BURST_GPT) == expected
    assert read(tmp_path, "\ufeff" + BURST_GPT.replace("\n", "\r\n")) == expected


def test_dates_of_a_day_with_a_change_of_clocks_are_not_moved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = "2023-10-29 00:30:00,1,1\n2023-10-29 03:30:00,1,1\n"
    assert [request.arrival_s for request in read(tmp_path, AZURE.splitlines()[0] + "\n" + rows)] == [0.0, 3 * 3600.0]


@pytest.mark.parametrize(
    "row", ["x,1,1", "nan,1,1", "1e999,1,1", "1,x,1", "1,1", "1,-1,1", "1,1,-1", "1,1.5,1", "2023-13-01 00:00:00,1,1"]
)
def test_a_bad_row_is_named(tmp_path: Path, row: str) -> None:
    with pytest.raises(TraceError, match=r"trace\.csv:3: "):
        read(tmp_path, "TIMESTAMP,ContextTokens,GeneratedTokens\n1,1,1\n" + row)


@pytest.mark.parametrize(
    "content",
    [
        b"\xff\xfe",
        b"TIMESTAMP,ContextTokens\n1,1\n",
        b"TIMESTAMP,ContextTokens,GeneratedTokens\n",
        b'"' + b"x" * 200_000,
    ],
)
def test_what_is_no_trace_is_one_line(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "file"
    path.write_bytes(content)
    with pytest.raises(TraceError) as raised:
        read_trace_file(path)
    assert str(raised.value).startswith(str(path)) and "\n" not in str(raised.value)
