"""Debian's Chromium on the playground; records errors that a user would not see.

The one without a user interface, where it is installed: a page is open in half the time.
"""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from playwright.sync_api import Browser, ConsoleMessage, Locator, Page, Request, Route, expect, sync_playwright

# Without these flags Chromium sends requests to Google at every start.
FLAGS = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
)  # fmt: skip
TIMEOUT_MS = 60_000
DESKTOP, PHONE = (1360, 820), (390, 800)


@contextmanager
def chromium() -> Iterator[Browser]:
    """Start a browser. Its driver runs an event loop, so no other one may run in this process meanwhile."""
    path = shutil.which("chromium-headless-shell") or shutil.which("chromium")
    assert path, "Debian: apt-get install chromium-headless-shell"
    expect.set_options(timeout=TIMEOUT_MS)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=FLAGS)
        yield browser
        browser.close()


@dataclass
class Visit:
    """One visit of the page. `problems` are console errors and requests to other servers."""

    page: Page
    origin: str
    problems: list[str] = field(default_factory=list)
    expected_statuses: set[int] = field(default_factory=set)  # of intended error responses

    def get(self, selector: str) -> Locator:
        return self.page.locator(selector)

    def write(self, prompt: str) -> None:
        """Send a prompt by keyboard and wait for the end of the text."""
        self.get("#prompt").fill(prompt)
        self.page.keyboard.press("Control+Enter")
        self.wait_until_finished()

    def wait_until_finished(self) -> None:
        """Wait for the end of the text: for the button too, as the seed may belong to the previous answer."""
        self.get("#run").wait_for()
        self.get("#summary .seed").wait_for()

    def set_slider(self, selector: str, value: float) -> None:
        """Move a slider as a drag does."""
        script = "(input, value) => { input.value = value; input.dispatchEvent(new Event('input')) }"
        self.get(selector).evaluate(script, value)

    def choose(self, name: str, value: str) -> None:
        """Click a radio button of a group by its label."""
        self.get(f"label:has(input[name={name}][value={value}])").click()

    @property
    def seed(self) -> int:
        """Seed of the last answer."""
        return int((self.get("#summary .seed").get_attribute("title") or "").partition(":")[0])

    @property
    def text(self) -> str:
        return "".join(self.get("#continuation .t").all_text_contents())

    def visible_token(self) -> int:
        """Return the index of a generated token, the third or a later one, that a pointer can meet: no line break."""
        tokens = self.get("#continuation .t").all_text_contents()
        return next(index for index, token in enumerate(tokens) if index > 1 and token.strip())

    def heat(self) -> list[list[int]]:
        """Return the tokens by layer and expert from the heat map."""
        rows = "rows => rows.map(row => [...row.querySelectorAll('td')].map(cell => Number(cell.dataset.tokens)))"
        counts: list[list[int]] = self.get("#heat tbody tr").evaluate_all(rows)
        return counts

    def note_console(self, message: ConsoleMessage) -> None:
        is_expected = any(f"status of {status}" in message.text for status in self.expected_statuses)
        if message.type in ("error", "warning") and not is_expected:
            self.problems.append(message.text)

    def note_request(self, request: Request) -> None:
        if urlsplit(request.url)._replace(path="", query="", fragment="").geturl() != self.origin:
            self.problems.append(f"a request to {request.url}")


@contextmanager
def visiting(
    browser: Browser,
    url: str,
    *,
    size: tuple[int, int] = DESKTOP,
    scheme: str = "light",
    statuses: tuple[int, ...] = (),
    touch: bool = False,
) -> Iterator[Visit]:
    """Open the page at `url`; at the end of the block check that there were no problems."""
    context = browser.new_context(
        viewport={"width": size[0], "height": size[1]},
        color_scheme=scheme,  # type: ignore[arg-type]
        permissions=["clipboard-read", "clipboard-write"],
        has_touch=touch,
    )
    context.set_default_timeout(TIMEOUT_MS)
    page = context.new_page()
    visit = Visit(page, url, expected_statuses=set(statuses))
    page.on("console", visit.note_console)
    page.on("pageerror", lambda error: visit.problems.append(str(error)))
    page.on("request", visit.note_request)
    page.goto(url)
    try:
        yield visit
        assert not visit.problems
    finally:
        context.close()


def abort(route: Route) -> None:
    """Abort a request, as a stopped server would."""
    route.abort()
