"""The panel of the server's load: the newest figures of GET /load/recent and a line of the two minutes before."""

import json
from typing import Any

import pytest
from playwright.sync_api import Route, expect

from tests.support.playground.browser import Visit

pytestmark = pytest.mark.browser
COLUMNS: dict[str, list[float | None]] = {
    "kv_usage": [0.0] * 58 + [0.5, 0.25],
    "generated_tokens_per_s": [0.0] * 58 + [50, 100],
    "accepted_tokens_per_s": [0.0] * 58 + [5, 20],
    "step_ms": [None] * 58 + [20, 40],
    "ttft_p50_ms": [None] * 60,
}


def test_the_load_is_that_of_the_api_with_a_line_for_each_history(visit: Visit) -> None:
    reply: dict[str, Any] = {"interval_s": 2, **COLUMNS}
    busy = {"server_load": 4, "running": 3, "waiting": 1}
    visit.page.route("**/load/recent*", lambda route: fulfill(route, reply))
    visit.page.route("**/load", lambda route: fulfill(route, busy))
    figures = visit.get("#load dd")
    expect(figures.nth(0)).to_have_text("3")
    expect(figures.nth(1)).to_have_text("1")
    expect(figures.nth(3)).to_have_text("100")
    assert figures.all_inner_texts() == ["3", "1", "25 %", "100", "20", "40 ms", "–"]
    lines = [line.get_attribute("points") or "" for line in visit.get(".sparkline polyline").all()]
    heights = [[float(point.split(",")[1]) for point in line.split()] for line in lines]
    assert [len(line) for line in heights] == [60] * 5
    assert heights[1][-2:] == [11, 1] and set(heights[1][:-2]) == {21}, "the largest value has full height"
    assert heights[0][-2:] == [1, 11] and set(heights[4]) == {21}


def fulfill(route: Route, body: object) -> None:
    route.fulfill(status=200, content_type="application/json", body=json.dumps(body))
