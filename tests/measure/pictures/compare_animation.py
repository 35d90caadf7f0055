"""Renew the animation at the top of the README: python -m tests.measure.pictures.compare_animation

Starts a server with the bundled model and Debian's chromium, compares 1, 2 and 4 experts per token on one prompt with
one seed, and shows the finished texts again token by token, so that the animation does not depend on how fast the
machine is. It is an animated WebP, of the real page.
"""

import io
import math

from PIL import Image
from playwright.sync_api import Locator

from tests.support.paths import ROOT
from tests.support.playground.browser import Visit, chromium, visiting
from tests.support.servers.running import start_server

PICTURE = ROOT / "docs" / "pictures" / "compare.webp"
MAX_BYTES = 300_000
SIZE = (1640, 860)  # wide enough for three columns side by side
PROMPT = "It was not in her power to"
SEED, TEMPERATURE, NUM_TOKENS = 1134, 0.7, 48
TOKENS_PER_FRAME, FRAME_MS, LAST_FRAME_MS = 2, 160, 5000
MARGIN = 12  # pixels around them

# Hide the tokens from the given number on. The page itself is not changed: another run shows them again.
SHOW_FIRST = """
(columns, count) => {
  for (const column of columns.querySelectorAll(".column")) {
    column.querySelectorAll(".tokens .t").forEach((token, index) => {
      token.style.visibility = index < count ? "" : "hidden";
    });
    const figures = column.querySelector(".figures");
    figures.style.visibility = count === Infinity ? "" : "hidden";
    for (const figure of figures.children) {
      if (figure.textContent.includes("tokens/s")) figure.style.display = "none";  // depends on the machine
    }
  }
}
"""


def main() -> None:
    with (
        start_server() as server,
        chromium() as browser,
        visiting(browser, server.url, size=SIZE, scheme="light") as visit,
    ):
        visit.get("#heat td").first.wait_for(state="attached")
        compare(visit)
        save(frames(visit))
    size = PICTURE.stat().st_size
    assert size < MAX_BYTES, f"{size} bytes: fewer tokens, or a lower quality"


def compare(visit: Visit) -> None:
    """Run the comparison with a fixed seed and wait until all columns are complete."""
    visit.choose("mode", "compare")
    visit.set_slider("#max_tokens", NUM_TOKENS)
    visit.set_slider("#temperature", TEMPERATURE)
    visit.get("#seed").evaluate("(input, seed) => { input.value = seed }", str(SEED))  # inside closed settings
    visit.get("#compare-prompt").fill(PROMPT)
    visit.get("#run").click()
    visit.wait_until_finished()
    visit.page.mouse.move(0, 0)  # no card under the pointer


def frames(visit: Visit) -> list[Image.Image]:
    """Return pictures of prompt and columns with more and more tokens; the last one has all tokens and the figures."""
    columns = visit.get("#compare")
    pictures = []
    for count in [*range(TOKENS_PER_FRAME, NUM_TOKENS, TOKENS_PER_FRAME), math.inf]:
        columns.evaluate(SHOW_FIRST, count)
        pictures.append(picture_of(visit, columns))
    return pictures


def picture_of(visit: Visit, columns: Locator) -> Image.Image:
    box = columns.bounding_box()
    assert box is not None
    clip = {
        "x": max(0, box["x"] - MARGIN),
        "y": max(0, box["y"] - MARGIN),
        "width": box["width"] + 2 * MARGIN,
        "height": box["height"] + 2 * MARGIN,
    }
    return Image.open(io.BytesIO(visit.page.screenshot(clip=clip, animations="disabled"))).convert("RGB")  # type: ignore[arg-type]


def save(pictures: list[Image.Image]) -> None:
    durations = [FRAME_MS] * (len(pictures) - 1) + [LAST_FRAME_MS]
    first, *others = pictures
    options = {"duration": durations, "loop": 0, "quality": 70, "method": 6, "minimize_size": True}
    first.save(PICTURE, save_all=True, append_images=others, **options)


if __name__ == "__main__":
    main()
