"""Medians and ratios of a comparison."""

from typing import Any

from server.bench.compare.report import as_chart, summary, table


def result(*rates: float, ready_s: float = 1.0, errors: int = 0) -> dict[str, Any]:
    return {
        "ready_s": ready_s,
        "peak_bytes": 1000e6 * ready_s,
        "runs": [
            {
                "load": f"{4**number} clients",
                "clients": 4**number,
                "errors": errors,
                "output_tokens_per_s": rate,
                "ttft_s": {"p50": 0.1 * rate} if rate else None,
                "gap_s": {"p50": 0.01, "p99": 0.02} if rate else None,
            }
            for number, rate in enumerate(rates)
        ],
    }


def test_a_ratio_is_the_median_of_the_rounds_ratios() -> None:
    """Not the ratio of the medians: 20 / 10, 30 / 30 and 40 / 10 have the median 2, their medians 30 / 10."""
    figures = {"a": [result(20.0), result(30.0), result(40.0)], "b": [result(10.0), result(30.0), result(10.0)]}
    first, other = summary(figures)
    assert (first["output_tokens_per_s"], other["output_tokens_per_s"]) == (30.0, 10.0)
    assert (first["ratio"], other["ratio"]) == (1.0, 2.0)
    assert other["ratios"] == [2.0, 1.0, 4.0]


def test_the_table_has_a_line_per_server_and_load() -> None:
    figures = {
        "smoe": [result(100.0, 400.0), result(120.0, 410.0, ready_s=3.0)],
        "a-very-long-name": [result(50.0, 100.0), result(60.0, 100.0, errors=1)],
    }
    head, titles, *lines = table(summary(figures)).splitlines()
    assert [line.split() for line in lines] == [
        ["smoe", "1", "clients", "110.0", "11000.0", "10.0/20.0", "2.0", "2000", "1.00"],
        ["4", "clients", "405.0", "40500.0", "10.0/20.0", "1.00"],
        ["a-very-long-…", "1", "clients", "55.0", "5500.0", "10.0/20.0", "1.0", "1000", "2.00", "1", "failed"],
        ["4", "clients", "100.0", "10000.0", "10.0/20.0", "4.05", "1", "failed"],
    ]
    assert "smoe /" in head and "memory" in head and "server" in titles
    assert all(len(line) <= 80 for line in (head, titles, lines[0], lines[1]))


def test_a_server_that_answers_nothing_has_no_ratio() -> None:
    _, other = summary({"a": [result(10.0)], "b": [result(0.0, errors=3)]})
    assert other["ratio"] is None and other["ttft_p50_s"] is None
    assert "-/-" in table([other]) and "3 failed" in table([other])


def test_a_chart_has_a_line_per_server() -> None:
    lines = as_chart(summary({"a": [result(1.0, 2.0)], "b": [result(3.0, 4.0)]}))
    assert [(line["label"], [run["clients"] for run in line["runs"]]) for line in lines] == [
        ("a", [1, 4]),
        ("b", [1, 4]),
    ]
