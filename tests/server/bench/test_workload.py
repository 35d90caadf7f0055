"""Drawn and traced requests, and their arrival times."""

import random
from itertools import islice, pairwise
from pathlib import Path

import pytest

from server.bench.workload import (
    Range,
    WorkloadError,
    draw_requests,
    poisson_arrivals,
    random_prompt,
    read_trace,
    with_arrivals,
)


def test_a_poisson_schedule_is_repeatable_and_has_the_gaps_of_its_rate() -> None:
    """Exponential gaps: mean 1/rate, standard deviation 1/rate, and a share of 1 - 1/e below the mean."""
    arrivals = list(islice(poisson_arrivals(20.0, random.Random(7)), 20_000))
    assert arrivals == list(islice(poisson_arrivals(20.0, random.Random(7)), 20_000))
    gaps = [b - a for a, b in pairwise(arrivals)]
    mean = sum(gaps) / len(gaps)
    deviation = (sum((gap - mean) ** 2 for gap in gaps) / len(gaps)) ** 0.5
    assert mean == pytest.approx(1 / 20, rel=0.03)
    assert deviation == pytest.approx(1 / 20, rel=0.05)
    assert sum(gap < 1 / 20 for gap in gaps) / len(gaps) == pytest.approx(0.632, abs=0.02)


def test_the_same_seed_gives_the_same_requests_within_their_ranges() -> None:
    first, second = (
        draw_requests("tokens", Range(3, 9), Range(2, 5), 200, 1000, random.Random(seed)) for seed in (4, 4)
    )
    assert first == second != draw_requests("tokens", Range(3, 9), Range(2, 5), 200, 1000, random.Random(5))
    assert {len(request.prompt) for request in first} == set(range(3, 10))
    assert {request.max_tokens for request in first} == set(range(2, 6))
    assert all(300 <= token < 1000 for request in first for token in request.prompt)
    due = with_arrivals(first, 5.0, random.Random(1))
    assert [request.prompt for request in due] == [request.prompt for request in first]
    assert all(a.due_s < b.due_s for a, b in pairwise(due))


def test_a_text_has_the_requested_number_of_words() -> None:
    text = random_prompt("text", 12, 2000, random.Random(0))
    assert isinstance(text, str)
    assert len(text.split()) == 12


def test_a_trace_is_read_in_order_of_arrival(tmp_path: Path) -> None:
    trace = tmp_path / "trace.jsonl"
    trace.write_text(
        '{"arrival_s": 2, "prompt_tokens": 5, "output_tokens": 7}\n\n'
        '{"arrival_s": 0.5, "prompt_tokens": 6, "output_tokens": 8, "more": 1}\n'
    )
    requests = read_trace(trace, "tokens", 2000, random.Random(0))
    assert [(r.due_s, len(r.prompt), r.max_tokens) for r in requests] == [(0.5, 6, 8), (2.0, 5, 7)]


@pytest.mark.parametrize(
    "line",
    [
        "no json",
        "[]",
        '{"arrival_s": 1, "prompt_tokens": 1}',
        '{"arrival_s": -1, "prompt_tokens": 1, "output_tokens": 1}',
        '{"arrival_s": true, "prompt_tokens": 1, "output_tokens": 1}',
        '{"arrival_s": 1, "prompt_tokens": 0, "output_tokens": 1}',
        '{"arrival_s": 1, "prompt_tokens": 1.5, "output_tokens": 1}',
        '{"arrival_s": "1", "prompt_tokens": 1, "output_tokens": 1}',
    ],
)
def test_a_bad_line_of_a_trace_is_named(line: str, tmp_path: Path) -> None:
    trace = tmp_path / "trace.jsonl"
    trace.write_text('{"arrival_s": 0, "prompt_tokens": 1, "output_tokens": 1}\n' + line)
    with pytest.raises(WorkloadError, match=r"trace\.jsonl:2: "):
        read_trace(trace, "tokens", 2000, random.Random(0))


def test_a_trace_that_is_not_there_or_empty_is_refused(tmp_path: Path) -> None:
    with pytest.raises(WorkloadError, match="No such file"):
        read_trace(tmp_path / "none", "tokens", 2000, random.Random(0))
    (tmp_path / "empty").write_text("\n")
    with pytest.raises(WorkloadError, match="no requests"):
        read_trace(tmp_path / "empty", "tokens", 2000, random.Random(0))


@pytest.mark.parametrize("text", ["", "0", "5,4", "a", "1,2,3", "-1"])
def test_an_invalid_range_is_refused(text: str) -> None:
    with pytest.raises(WorkloadError):
        Range.parse(text)
