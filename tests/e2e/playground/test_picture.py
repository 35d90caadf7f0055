"""Pictures to share: a PNG of the comparison and of the experts, as the browser itself draws them."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Browser, Locator, expect

from tests.support.playground.browser import Visit, visiting
from tests.support.playground.states import PROSE, words
from tests.support.playground.stub_server import stub_server

pytestmark = pytest.mark.browser
SCALE, MARGIN = 2, 24
Pixels = np.ndarray


def picture(visit: Visit, button: str, file: Path) -> Pixels:
    """Save a picture; return its pixels."""
    with visit.page.expect_download() as download:
        visit.get(button).click()
    assert download.value.suggested_filename == "smoe.png"
    download.value.save_as(file)
    return np.asarray(Image.open(file).convert("RGB"), dtype=int)


def screenshot(part: Locator, width: int, height: int) -> Pixels:
    """Return the pixels of a part as the browser draws it, in the picture's size."""
    image = Image.open(io.BytesIO(part.screenshot())).convert("RGB")
    return np.asarray(image.resize((width, height), Image.Resampling.BICUBIC), dtype=int)


def differing(one: Pixels, other: Pixels) -> float:
    """Return the share of pixels that differ clearly in a channel."""
    return float((np.abs(one - other).max(axis=-1) > 60).mean())


def part_of(pixels: Pixels, box: dict[str, float], root: dict[str, float]) -> Pixels:
    """Cut the rectangle of an element out of the picture of `root`."""
    left, top = (round(SCALE * (MARGIN + box[side] - root[side])) for side in ("x", "y"))
    return pixels[top : top + round(SCALE * box["height"]), left : left + round(SCALE * box["width"])]


def test_a_picture_of_a_long_part_is_smaller_and_one_that_cannot_be_made_says_so(
    browser: Browser, tmp_path: Path
) -> None:
    with stub_server() as stub, visiting(browser, stub.url) as visit:
        visit.get("#heat td").first.wait_for(state="attached")
        visit.choose("mode", "compare")
        visit.get("#columns").evaluate("part => { part.style.height = '40000px'; }")
        pixels = picture(visit, "#picture", tmp_path / "picture.png")
        assert 15_990 <= pixels.shape[0] <= 16_000
        visit.page.evaluate("void (HTMLCanvasElement.prototype.toBlob = (done) => done(null))")
        visit.get("#picture").click()
        expect(visit.get("#toast")).to_have_text("This is too large for a picture")
        expect(visit.get(".drawn, .caption")).to_have_count(0)
        visit.page.evaluate("void (CanvasRenderingContext2D.prototype.fill = () => { throw new Error('no pen') })")
        visit.get("#picture").click()
        expect(visit.get("#columns")).to_be_visible()
        expect(visit.get(".drawn, .caption")).to_have_count(0)
        assert visit.problems == ["no pen"], "a fault of the page is not hidden"
        visit.problems.clear()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_pictures_have_the_texts_and_the_map_where_the_page_has_them(
    browser: Browser, tmp_path: Path, scheme: str
) -> None:
    with stub_server() as stub, visiting(browser, stub.url, scheme=scheme) as visit:
        visit.get("#heat td").first.wait_for(state="attached")
        visit.choose("mode", "compare")
        stub.tokens = words(" " + PROSE)
        visit.get("#compare-prompt").fill("It was not")
        visit.get("#run").click()
        visit.wait_until_finished()
        visit.choose("tint", "expert")
        for button, root, part in (
            ("#picture", "#columns", ".column-text"),
            ("#experts-picture", "#experts", "#heat tbody"),
        ):
            visit.page.mouse.move(0, 0)
            pixels = picture(visit, button, tmp_path / "picture.png")
            expect(visit.get(f"{root} .caption")).to_have_count(0)
            visit.get(root).evaluate("part => part.classList.add('drawn')")  # as it is drawn: without controls
            whole, box = visit.get(root).bounding_box(), visit.get(part).first.bounding_box()
            assert whole and box
            assert pixels.shape[1] == int(SCALE * (whole["width"] + 2 * MARGIN))
            assert pixels.shape[0] > SCALE * (whole["height"] + 2 * MARGIN), "there are lines below it"
            drawn = part_of(pixels, dict(box), dict(whole))
            shown = screenshot(visit.get(part).first, drawn.shape[1], drawn.shape[0])
            background = np.broadcast_to(np.median(shown.reshape(-1, 3), axis=0), shown.shape)
            assert differing(drawn, shown) < 0.25 * differing(background, shown), "closer than an empty picture"
            caption = pixels[-SCALE * (MARGIN + 16) : -SCALE * MARGIN]
            assert differing(caption, np.broadcast_to(pixels[0, 0], caption.shape)) > 0.001
