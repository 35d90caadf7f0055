"""The tab of the server: figures of GET /load/recent, refreshed; none without a key, and none from a dead server."""

import re

import pytest
from playwright.sync_api import Browser, expect

from tests.support.playground.browser import visiting
from tests.support.playground.stub_server import POINTS, stub_server

pytestmark = pytest.mark.browser


def test_the_dashboard_shows_five_minutes_and_follows_the_server(browser: Browser) -> None:
    with stub_server() as stub, visiting(browser, stub.url) as visit:
        stub.recent |= {
            "generated_tokens_per_s": [0.0] * (POINTS - 1) + [50.0],
            "prompt_tokens_per_s": [100.0] * POINTS,
        }
        stub.recent |= {"ttft_p50_ms": [None] * POINTS, "ttft_p99_ms": [None, 30.0] + [None] * (POINTS - 2)}
        stub.recent |= {"kv_usage": [0.25] * POINTS}
        visit.choose("mode", "server")
        figures = visit.get(".chart b")
        expect(figures.nth(0)).to_have_text("50")
        assert figures.all_inner_texts() == ["50", "100", "0.0", "0", "0", "25 %", "–", "30 ms", "0 ms"]
        expect(visit.get(".chart").first).to_contain_text("highest 100")
        line = visit.get(".chart path").first.get_attribute("d") or ""
        assert line.count("L") == POINTS - 1 and line.endswith("L120,11"), "half of the height of the largest line"
        none, one = (path.get_attribute("d") or "" for path in visit.get(".chart").nth(3).locator("path").all())
        assert none == ""
        assert re.fullmatch(r"M[\d.]+,1h0", one), "a dot, at the last measured value"
        expect(visit.get("#dashboard-status")).to_have_text(
            "stub · 4 layers, 2 of 8 experts per token · 2,048 tokens of context · smoe 1.2.3"
        )
        stub.recent["generated_tokens_per_s"][-1] = 70.0
        expect(figures.nth(0)).to_have_text("70")


def test_a_line_is_broken_where_nothing_was_measured(browser: Browser) -> None:
    with stub_server() as stub, visiting(browser, stub.url) as visit:
        stub.recent["step_ms"] = [20.0, 40.0, None, 10.0, None, *([None] * (POINTS - 7)), 20.0, 40.0]
        visit.choose("mode", "server")
        expect(visit.get(".chart b").last).to_have_text("40 ms")
        line = visit.get(".chart path").last.get_attribute("d") or ""
        assert re.sub(r"[\d.]+,[\d.]+", "p", line) == "Mph0LpMph0Mph0Lp"


def test_a_text_goes_on_behind_the_dashboard(browser: Browser) -> None:
    with stub_server() as stub, visiting(browser, stub.url) as visit:
        visit.get("#heat td").first.wait_for()
        stub.released.clear()
        visit.get("#prompt").fill("A prompt")
        visit.get("#run").click()
        visit.get("#continuation .t").first.wait_for()
        visit.choose("mode", "server")
        expect(visit.get("#dashboard")).to_be_visible()
        expect(visit.get("input[name=mode][value=chat]")).to_be_disabled()
        stub.released.set()
        visit.choose("mode", "completion")
        visit.wait_until_finished()
        assert visit.text == "An answer"


def test_no_figure_is_shown_without_the_key_or_from_a_server_that_died(browser: Browser) -> None:
    with stub_server() as stub:
        stub.api_key = "secret"
        with visiting(browser, stub.url, statuses=(401,)) as visit:
            visit.get("#key-panel").wait_for()
            visit.page.keyboard.press("Escape")
            visit.choose("mode", "server")
            expect(visit.get("#dashboard-status")).to_contain_text("need the API key")
            assert set(visit.get(".chart b").all_inner_texts()) == {"–"}
            visit.get("#key-button").click()
            visit.get("#key").fill("secret")
            visit.page.keyboard.press("Enter")
            expect(visit.get(".chart b").first).to_have_text("0.0")
            stub.stop()
            expect(visit.get("#dashboard-status")).to_contain_text("No figures")
            assert set(visit.get(".chart b").all_inner_texts()) == {"–"}
            stub.start()
            expect(visit.get(".chart b").first).to_have_text("0.0")
            visit.problems[:] = [problem for problem in visit.problems if "ERR_" not in problem]
