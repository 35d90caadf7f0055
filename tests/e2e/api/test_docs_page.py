"""The page at /docs in a browser: readable on a wide screen and a phone, light and dark, and walked by its contents."""

import pytest
from axe_playwright_python.sync_playwright import Axe

from tests.support.playground.browser import PHONE, chromium, visiting
from tests.support.servers.running import RunningServer

pytestmark = pytest.mark.browser


def test_the_page_fits_is_accessible_and_its_contents_lead_to_every_operation(server: RunningServer) -> None:
    with chromium() as browser:
        for size, scheme in (((1280, 900), "light"), (PHONE, "dark")):
            with visiting(browser, server.url, size=size, scheme=scheme) as visit:
                visit.page.goto(f"{server.url}/docs")
                violations = Axe().run(visit.page).response["violations"]
                assert [violation["id"] for violation in violations] == []
                assert visit.page.evaluate("document.documentElement.scrollWidth") == size[0]
                targets = visit.get("nav a[href^='#']").evaluate_all("links => links.map(link => link.hash.slice(1))")
                assert len(targets) > 25
                headings = "ids => ids.filter(id => !document.getElementById(id)?.matches('h2, h3'))"
                assert visit.page.evaluate(headings, targets) == []
                program = visit.get("details:has(summary:text-is('Python'))").first
                program.locator("summary").click()
                assert "OpenAI(base_url" in program.inner_text()
