"""The server's load beside a text: the newest figures of GET /load/recent and lines of the two minutes before."""

import json
import re
from typing import Any

import pytest
from playwright.sync_api import Route, expect

from tests.support.playground.browser import Visit

pytestmark = pytest.mark.browser
COLUMNS: dict[str, list[float | None]] = {
    "generated_tokens_per_s": [0.0] * 58 + [50, 100],
    "prompt_tokens_per_s": [0.0] * 58 + [200, 0],
    "accepted_tokens_per_s": [0.0] * 58 + [5, 20],
    "running": [0.0] * 58 + [2, 3],
    "waiting": [0.0] * 58 + [0, 1],
    "kv_usage": [0.0] * 58 + [0.5, 0.25],
    "ttft_p50_ms": [None] * 60,
    "ttft_p99_ms": [None] * 60,
    "step_ms": [None] * 58 + [20, 40],
}


def test_the_load_is_that_of_the_api_with_a_line_for_each_history(visit: Visit) -> None:
    reply: dict[str, Any] = {"interval_s": 2, **COLUMNS}
    visit.page.route("**/load/recent?interval=2", lambda route: fulfill(route, reply))
    figures = visit.get("#load-section b")
    expect(figures.nth(0)).to_have_text("100")
    assert figures.all_inner_texts() == ["100", "0.0", "20", "3", "1", "25 %", "–", "–", "40 ms"]
    lines = [line.get_attribute("d") or "" for line in visit.get("#load-section path").all()]
    heights = [list(map(float, re.findall(r",([\d.]+)", line))) for line in lines]
    assert [len(line) for line in heights] == [60] * 6 + [0, 0, 2], "nothing is drawn where nothing was measured"
    assert heights[1][-2:] == [1, 21] and set(heights[1][:-2]) == {21}, "the largest value has full height"
    assert heights[0][-2:] == [16, 11], "all lines of a chart have one scale"
    assert heights[5][-2:] == [1, 11]


def test_the_charts_move_into_the_tab_of_the_server_and_back(visit: Visit) -> None:
    for mode, place in (("server", "#dashboard"), ("chat", "#load-section")):
        visit.choose("mode", mode)
        expect(visit.get(f"{place} .chart")).to_have_count(5)
        expect(visit.get(".chart")).to_have_count(5)
        expect(visit.get(f"{place} .chart").first).to_be_visible()


def fulfill(route: Route, body: object) -> None:
    route.fulfill(status=200, content_type="application/json", body=json.dumps(body))
