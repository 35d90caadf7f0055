"""Traces of requests: when each arrived, and the lengths of its prompt and answer.

Three forms are read as they are: JSON lines of {"arrival_s", "prompt_tokens", "output_tokens"}, and the CSV files of
two public traces, Azure's LLM inference traces (TIMESTAMP, ContextTokens, GeneratedTokens) and BurstGPT (Timestamp,
Request tokens, Response tokens).
"""

import csv
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import orjson

JSON_EXAMPLE = '{"arrival_s": 0.5, "prompt_tokens": 100, "output_tokens": 20}'
CSV_COLUMNS = (
    ("TIMESTAMP", "ContextTokens", "GeneratedTokens"),  # Azure
    ("Timestamp", "Request tokens", "Response tokens"),  # BurstGPT
)


class TraceError(Exception):
    """A trace that is missing or invalid. One line, with the place."""


@dataclass(frozen=True, order=True)
class TracedRequest:
    """A request of a trace."""

    arrival_s: float
    num_prompt_tokens: int
    num_output_tokens: int


def read_trace_file(path: Path) -> list[TracedRequest]:
    """Return the requests in the order of their arrival, which begins at 0 in a CSV file.

    Of CSV files, requests without a prompt or an answer are left out: they failed. Raises TraceError.
    """
    try:
        lines = path.read_text("utf-8-sig").splitlines()
    except OSError as error:
        raise TraceError(f"{path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise TraceError(f"{path}: is not text") from None
    try:
        requests = _from_csv(path, lines) if _columns_of(lines) else list(_from_json(path, lines))
    except csv.Error as error:
        raise TraceError(f"{path}: {error}") from None
    if not requests:
        raise TraceError(f"{path}: the file has no requests")
    return sorted(requests)


def _columns_of(lines: Sequence[str]) -> tuple[str, str, str] | None:
    """Return the names of the three columns if the first line is the head of a known CSV file."""
    head = next(csv.reader(lines[:1]), [])
    return next((names for names in CSV_COLUMNS if set(names) <= set(head)), None)


def _from_csv(path: Path, lines: Sequence[str]) -> list[TracedRequest]:
    columns = _columns_of(lines)
    assert columns is not None
    rows = csv.DictReader(lines)
    requests = [_parse_row(f"{path}:{rows.line_num}", row, columns) for row in rows]
    answered = [request for request in requests if request.num_prompt_tokens and request.num_output_tokens]
    first_s = min((request.arrival_s for request in answered), default=0.0)
    return [replace(request, arrival_s=request.arrival_s - first_s) for request in answered]


def _parse_row(place: str, row: Mapping[str, str], columns: tuple[str, str, str]) -> TracedRequest:
    time, prompt, output = (row[name] for name in columns)
    try:
        request = TracedRequest(_seconds(time), int(prompt), int(output))
    except (TypeError, ValueError):
        raise TraceError(f"{place}: should have a time and two numbers of tokens") from None
    if request.num_prompt_tokens < 0 or request.num_output_tokens < 0:
        raise TraceError(f"{place}: a number of tokens should be 0 or more")
    return request


def _seconds(text: str) -> float:
    """Return a time in seconds: a number of them, or a date as in 2023-11-16 18:15:46.6805900."""
    try:
        seconds = float(text)
    except ValueError:
        date = datetime.fromisoformat(text)
        seconds = (date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp()
    if not abs(seconds) < float("inf"):
        raise ValueError
    return seconds


def _from_json(path: Path, lines: Sequence[str]) -> Iterator[TracedRequest]:
    for number, line in enumerate(lines, 1):
        if line.strip():
            yield _parse_entry(f"{path}:{number}", line)


def _parse_entry(place: str, line: str) -> TracedRequest:
    try:
        fields = orjson.loads(line)
        due_s, lengths = fields["arrival_s"], (fields["prompt_tokens"], fields["output_tokens"])
    except (orjson.JSONDecodeError, KeyError, TypeError):
        raise TraceError(f"{place}: should be {JSON_EXAMPLE}") from None
    if not _is_number(due_s) or due_s < 0 or not all(isinstance(n, int) and n >= 1 for n in lengths):
        raise TraceError(f"{place}: arrival_s should be 0 or more, both counts 1 or more")
    return TracedRequest(float(due_s), *lengths)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
