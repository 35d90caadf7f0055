"""Renew the pictures of the playground in docs/pictures/: python -m tests.measure.pictures.screenshots

Starts a server with the bundled model and Debian's chromium. The seed is fixed, so the pictures change only when the
page, the model or the numerics do.
"""

from collections.abc import Callable

from playwright.sync_api import Browser

from tests.support.paths import ROOT
from tests.support.playground.browser import PHONE, Visit, chromium, visiting
from tests.support.servers.running import start_server

DESKTOP = (1280, 760)
PROMPT = "It was not in her power to"
SEED = 1134


def main() -> None:
    with start_server("--seed", str(SEED)) as server, chromium() as browser:
        take(browser, server.url, "playground-light", DESKTOP, "light", _open_card)
        take(browser, server.url, "playground-dark", DESKTOP, "dark", _color_by_expert)
        take(browser, server.url, "playground-phone", PHONE, "light", _color_by_surprise)


def take(
    browser: Browser, url: str, name: str, size: tuple[int, int], scheme: str, prepare: Callable[[Visit], None]
) -> None:
    """Save one picture of the page after it has written a text."""
    with visiting(browser, url, size=size, scheme=scheme) as visit:
        visit.get("#heat td").first.wait_for(state="attached")
        prepare(visit)
        visit.page.wait_for_timeout(1500)  # the heat map and the load are polled
        visit.page.screenshot(path=ROOT / "docs" / "pictures" / f"{name}.png")


def _open_card(visit: Visit) -> None:
    visit.set_slider("#temperature", 0.7)
    visit.write(PROMPT)
    visit.get("#continuation .t").nth(17).hover()


def _color_by_expert(visit: Visit) -> None:
    visit.set_slider("#experts_per_token", 4)
    visit.write(PROMPT)
    visit.choose("tint", "expert")
    visit.set_slider("#layer", 3)


def _color_by_surprise(visit: Visit) -> None:
    visit.write(PROMPT)
    visit.choose("view", "inside")
    visit.choose("tint", "surprise")
    visit.choose("view", "write")


if __name__ == "__main__":
    main()
