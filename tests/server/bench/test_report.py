"""Figures of timings, against naive definitions."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.bench.load_generator import RequestTiming
from server.bench.report import percentile, spread, summary, table


@given(st.lists(st.integers(0, 50), min_size=1, max_size=40), st.integers(1, 100))
def test_a_percentile_is_the_smallest_value_that_enough_do_not_exceed(values: list[int], percent: int) -> None:
    candidates = [v for v in values if 100 * sum(other <= v for other in values) >= percent * len(values)]
    assert percentile(values, percent) == min(candidates)


def test_no_values_have_no_spread() -> None:
    assert spread([]) is None


def test_a_run_counts_its_failures_apart_and_its_tokens_over_all_of_its_time() -> None:
    rng = random.Random(1)
    timings = []
    for start_s in range(20):
        moments = sorted(start_s + rng.random() for _ in range(5))
        timings.append(RequestTiming(start_s, moments, moments[-1] + 0.5, prompt_tokens=10, output_tokens=5))
    failed = [
        RequestTiming(1.0, [1.5], 2.0, 10, 1, error="HTTP 429: full"),
        RequestTiming(2.0, [], 2.0, error="HTTP 429: full"),
    ]
    figures = summary([*timings, *failed], seconds=4.0)
    assert (figures["requests"], figures["errors"]) == (22, 2)
    assert figures["error_messages"] == {"HTTP 429: full": 2}
    assert (figures["input_tokens_per_s"], figures["output_tokens_per_s"]) == (50.0, 25.0)
    gaps = [b - a for r in timings for a, b in zip(r.chunk_s, r.chunk_s[1:], strict=False)]
    assert figures["gap_s"]["max"] == max(gaps)
    assert figures["gap_s"]["mean"] == pytest.approx(sum(gaps) / len(gaps))
    assert figures["ttft_s"]["max"] == max(r.chunk_s[0] - r.start_s for r in timings)
    assert figures["total_s"]["p50"] == sorted(r.end_s - r.start_s for r in timings)[9]


def test_a_run_in_which_everything_failed_still_has_a_table_row() -> None:
    figures = summary([RequestTiming(0.0, error="connection refused")], 1.0)
    assert "-" in table([{"load": "1 client", **figures}])


def test_the_table_of_a_busy_server_fits_a_terminal_of_80_columns() -> None:
    timings = [RequestTiming(0.0, [12.3456, 13.4567], 99.99, 100_000, 100_000) for _ in range(99_999)]
    lines = table([{"load": "trace a-very-long-name.jsonl", **summary(timings, 1234.0)}]).splitlines()
    assert max(map(len, lines)) <= 80
    assert "12346/12346" in lines[-1] and "1111/1111" in lines[-1], "milliseconds without digits that say nothing"
    assert len(lines[-1].split()) == 9, "no column runs into the next"


@pytest.mark.parametrize("counts_chunks", [True, False])
def test_the_table_says_that_chunks_were_counted(counts_chunks: bool) -> None:
    timing = RequestTiming(0.0, [0.5], 1.0, output_tokens=1, counts_chunks=counts_chunks)
    text = table([{"load": "1 client", **summary([timing], 1.0)}])
    assert ("no usage" in text) == counts_chunks
    assert max(map(len, text.splitlines())) <= 80
