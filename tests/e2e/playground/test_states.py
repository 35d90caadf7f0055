"""Every state of the playground at three widths, light and dark: it fits the window, and axe finds nothing.

`make test` runs axe in light at the smallest width and in dark at the largest, `make test-full` in both at each width.
"""

import pytest
from playwright.sync_api import Browser

from tests.e2e.playground.test_page import violations
from tests.support.playground.browser import visiting
from tests.support.playground.states import EXPECTED_STATUSES, STATES
from tests.support.playground.stub_server import stub_server

pytestmark = pytest.mark.browser
# Sizes of text, in pixels. The weights of a map with many layers are smaller.
SIZES = """() => {
  const isText = (node) => node.nodeType === Node.TEXT_NODE && node.data.trim();
  const hasText = (node) => [...node.childNodes].some(isText);
  const all = [...document.querySelectorAll("body *")];
  const shown = all.filter((node) => node.checkVisibility() && hasText(node));
  return [...new Set(shown.map((node) => getComputedStyle(node).fontSize))];
}"""
FITS = "document.documentElement.scrollWidth <= innerWidth && document.documentElement.scrollHeight <= innerHeight"


@pytest.mark.parametrize(("width", "schemes"), [(390, ("light",)), (1024, ()), (1440, ("dark",))])
def test_every_state_fits_its_window_and_axe_finds_nothing(
    browser: Browser, scale: int, width: int, schemes: tuple[str, ...]
) -> None:
    faults = []
    if scale > 1:
        schemes = ("light", "dark")
    with (
        stub_server() as stub,
        visiting(browser, stub.url, size=(width, 820), statuses=EXPECTED_STATUSES) as visit,
    ):
        for state in STATES:
            state(visit, stub)
            for scheme in schemes:
                visit.page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
                faults += [f"{state.__name__}, {scheme}: {violation}" for violation in violations(visit)]
            if others := set(visit.page.evaluate(SIZES)) - {"12px", "14px", "16px", "20px"}:
                faults.append(f"{state.__name__}: text of {others}")
            if not visit.page.evaluate(FITS):
                faults.append(f"{state.__name__}: larger than the window")
    assert not faults, "\n".join(faults)
