"""Pictures in the documentation: small, and the animation at the top of the README moves."""

import re
from pathlib import Path

import pytest
from PIL import Image

from tests.support.paths import ROOT

PICTURE = ROOT / "docs" / "pictures" / "compare.webp"  # python -m tests.measure.pictures.compare_animation
MAX_BYTES = 300_000
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
LINK = re.compile(r"!\[([^\]]*)\]\(([^)\s]+\.(?:png|webp|svg))\)")
LINKED = sorted(
    {
        (page.parent / link).resolve()
        for page in PAGES
        for _, link in LINK.findall(page.read_text())
        if "://" not in link
    }
)


@pytest.mark.parametrize("picture", LINKED, ids=lambda path: path.name)
def test_a_picture_is_small(picture: Path) -> None:
    assert picture.stat().st_size < MAX_BYTES


def test_every_picture_has_a_text_for_those_who_do_not_see_it() -> None:
    texts = [text for page in PAGES for text, _ in LINK.findall(page.read_text())]
    assert texts and all(len(text) > 20 for text in texts)


def test_the_readme_opens_with_an_animation() -> None:
    [(_, first), *_] = LINK.findall((ROOT / "README.md").read_text())
    assert ROOT / first == PICTURE
    with Image.open(PICTURE) as picture:
        assert picture.n_frames >= 10  # type: ignore[attr-defined]
        assert picture.width >= 800
