"""Make the playground's font: python -m tests.measure.pictures.page_font FONT

FONT: inter-latin-wght-normal.woff2 of the npm package @fontsource-variable/inter. Needs fonttools and brotli. Keeps the
weights that the page uses, the characters of its controls and Latin-1, kerning and figures of one width.
"""

import sys
from pathlib import Path

from fontTools import subset
from fontTools.ttLib import TTFont
from fontTools.varLib.instancer import instantiateVariableFont

from server.api.playground_files import FOLDER

TARGET = FOLDER / "fonts" / "inter.woff2"
WEIGHTS = (400, 700)
CHARACTERS = [*range(0x20, 0x7F), *range(0xA0, 0x100), 0x152, 0x153, 0x20AC, 0x2212, *range(0x2013, 0x2040)]
FEATURES = ["kern", "mark", "tnum", "ccmp", "locl"]


def main(source: Path) -> None:
    font = TTFont(source)
    subsetter = subset.Subsetter(subset.Options(layout_features=FEATURES))
    subsetter.populate(unicodes=CHARACTERS)
    subsetter.subset(font)
    font = instantiateVariableFont(font, {"wght": WEIGHTS})
    font.flavor = "woff2"
    font.save(TARGET)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
