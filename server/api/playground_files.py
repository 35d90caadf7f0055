"""The files of the playground, which are shipped with the package."""

from functools import cache
from pathlib import Path

FOLDER = Path(__file__).parents[1] / "playground"
INDEX = "index.html"
PREFIX = "/playground/"
CONTENT_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
    ".woff2": "font/woff2",
    ".txt": "text/plain; charset=utf-8",  # the font's license
}


@cache
def files() -> dict[str, tuple[bytes, str]]:
    """Read the files, by path below the folder ("text/chat.js"): content and content type."""
    paths = [path for path in FOLDER.rglob("*") if path.suffix in CONTENT_TYPES]
    return {path.relative_to(FOLDER).as_posix(): (path.read_bytes(), CONTENT_TYPES[path.suffix]) for path in paths}


def open_paths() -> frozenset[str]:
    """Return the paths that need no API key: the page and its files, which contain nothing secret."""
    return frozenset({"/", *(PREFIX + name for name in files())})
