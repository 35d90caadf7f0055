"""One browser for the tests of a file, and a visit of the page with the bundled model."""

from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser

from tests.support.playground.browser import Visit, chromium, visiting
from tests.support.servers.running import RunningServer


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Not for the whole folder: playwright keeps an event loop running, beside which no asynchronous test can run."""
    with chromium() as started:
        yield started


@pytest.fixture
def visit(browser: Browser, server: RunningServer) -> Iterator[Visit]:
    """The page, once the model's experts are shown. Tests script replies of 401 and 503."""
    with visiting(browser, server.url, statuses=(401, 503)) as page:
        page.get("#heat td").first.wait_for()
        yield page
