"""Take a picture of each state of the playground: python -m tests.measure.pictures.playground_states FOLDER

Three widths, light and dark, on a stub server. Nothing is compared: the pictures are for the eye.
"""

import sys
from pathlib import Path

from tests.support.playground.browser import chromium, visiting
from tests.support.playground.states import EXPECTED_STATUSES, STATES
from tests.support.playground.stub_server import stub_server

SIZES = ((390, 800), (1024, 760), (1440, 860))


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with chromium() as browser:
        for size in SIZES:
            for scheme in ("light", "dark"):
                with (
                    stub_server() as stub,
                    visiting(browser, stub.url, size=size, scheme=scheme, statuses=EXPECTED_STATUSES) as visit,
                ):
                    for number, state in enumerate(STATES):
                        state(visit, stub)
                        name = f"{size[0]}-{scheme}-{number:02d}-{state.__name__}.png"
                        visit.page.screenshot(path=folder / name)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
