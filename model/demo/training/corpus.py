"""Load the three domains of the demo model's training text, from files of Debian packages.

Austen: `r-cran-janeaustenr` contains six novels as zlib-compressed serialized R strings. Scripture: `bible-kjv` prints
the King James Bible. Python: the source of the standard library of the interpreter that runs this. A domain is a list
of documents (chapters, chapters, files) with a fixed split into a training and a held-out part.
"""

import gzip
import hashlib
import re
import struct
import subprocess
import sysconfig
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

AUSTEN_DATA = Path("/usr/lib/R/site-library/janeaustenr/data")
NOVELS = {
    "emma": "Emma",
    "mansfieldpark": "Mansfield Park",
    "northangerabbey": "Northanger Abbey",
    "persuasion": "Persuasion",
    "prideprejudice": "Pride and Prejudice",
    "sensesensibility": "Sense and Sensibility",
}
HELD_OUT_NOVEL = "persuasion"
HELD_OUT_BOOKS = frozenset({"Ruth", "Mark"})
HELD_OUT_PYTHON_PERCENT = 5
MIN_PYTHON_BYTES, MAX_PYTHON_BYTES = 200, 60_000
EXCLUDED = r"(^|/)(tests?|idle_test|site-packages|dist-packages|lib2to3|config-.*|_pyrepl)/|encodings/"
CHARSXP, STRSXP = 9, 16  # R's type codes of one string and of a vector of strings


@dataclass(frozen=True)
class Domain:
    """One kind of text. Documents are full chapters or files, in a fixed order."""

    name: str
    train: list[str]
    held_out: list[str]


def load_domains() -> list[Domain]:
    """Load all three domains. Raises FileNotFoundError with the name of a missing Debian package."""
    return [_austen(), _scripture(), load_python()]


def _austen() -> Domain:
    if not AUSTEN_DATA.is_dir():
        raise FileNotFoundError("the novels are missing: apt-get install r-cran-janeaustenr")
    train: list[str] = []
    held_out: list[str] = []
    for key, title in NOVELS.items():
        chapters = _chapters(_novel_lines(key))
        (held_out if key == HELD_OUT_NOVEL else train).extend(f"{title}\n\n{text}" for text in chapters)
    return Domain("austen", train, held_out)


def _novel_lines(key: str) -> list[str]:
    """Read the lines of one novel from R's lazy-load files: Rdata.rdx has the position of each value in Rdata.rdb."""
    index = gzip.decompress((AUSTEN_DATA / "Rdata.rdx").read_bytes())
    offsets = re.findall(rb"\x00\x00\x00\x0d\x00\x00\x00\x02(.{4})(.{4})", index, re.DOTALL)
    keys = [word.decode() for word in re.findall(rb"[a-z]+", index) if word.decode() in NOVELS]
    position, length = (struct.unpack(">I", part)[0] for part in offsets[keys.index(key)])
    packed = (AUSTEN_DATA / "Rdata.rdb").read_bytes()[position : position + length]
    return list(_strings(zlib.decompress(packed[4:])))  # 4 bytes: the unpacked length


def _strings(serialized: bytes) -> Iterator[str]:
    """Yield the strings of one serialized R character vector (XDR format, versions 2 and 3)."""
    version = struct.unpack(">I", serialized[2:6])[0]
    offset = 14
    if version == 3:  # the name of the native encoding follows
        offset += 4 + struct.unpack(">I", serialized[14:18])[0]
    flags, count = struct.unpack(">II", serialized[offset : offset + 8])
    if flags & 0xFF != STRSXP:
        raise ValueError(f"expected a character vector, got R type {flags & 0xFF}")
    offset += 8
    for _ in range(count):
        flags, length = struct.unpack(">Ii", serialized[offset : offset + 8])
        if flags & 0xFF != CHARSXP:
            raise ValueError(f"expected a string, got R type {flags & 0xFF}")
        offset += 8
        yield serialized[offset : offset + length].decode("utf-8", "replace")
        offset += length


def _chapters(lines: list[str]) -> list[str]:
    """Split a novel into chapters, and join hard line breaks: one line per paragraph."""
    paragraphs = [" ".join(p.split()) for p in "\n".join(lines).split("\n\n")]
    chapters: list[list[str]] = [[]]
    for paragraph in filter(None, paragraphs):
        if re.match(r"(?i)chapter\b", paragraph):
            chapters.append([])
        chapters[-1].append(paragraph)
    return ["\n\n".join(chapter) for chapter in chapters if len(chapter) > 2]


def _scripture() -> Domain:
    try:
        verses = subprocess.run(
            ["bible", "-f", "gen1:1-rev22:21"], capture_output=True, text=True, check=True, timeout=60
        ).stdout.splitlines()
    except FileNotFoundError:
        raise FileNotFoundError("the King James Bible is missing: apt-get install bible-kjv") from None
    chapters: dict[tuple[str, str], list[str]] = {}
    for verse in verses:
        match = re.match(r"\s*(\d?[A-Za-z]+)(\d+):(\d+) (.*)", verse)
        if match:
            book, chapter, number, text = match.groups()
            chapters.setdefault((book, chapter), []).append(f"{chapter}:{number} {' '.join(text.split())}")
    train: list[str] = []
    held_out: list[str] = []
    for (book, _), text in chapters.items():
        (held_out if book in HELD_OUT_BOOKS else train).append("\n".join(text))
    return Domain("scripture", train, held_out)


def load_python() -> Domain:
    """Load the source files of the standard library, which need no Debian package."""
    root = Path(sysconfig.get_paths()["stdlib"])
    train: list[str] = []
    held_out: list[str] = []
    for path in sorted(root.rglob("*.py")):
        relative = path.relative_to(root).as_posix()
        if re.search(EXCLUDED, relative):
            continue
        text = path.read_text(encoding="utf-8", errors="ignore")
        if len(text) > MIN_PYTHON_BYTES:
            held = hashlib.sha256(relative.encode()).digest()[0] * 100 < HELD_OUT_PYTHON_PERCENT * 256
            (held_out if held else train).append(text[:MAX_PYTHON_BYTES])
    return Domain("python", train, held_out)


if __name__ == "__main__":
    for each in load_domains():
        train_bytes, held_bytes = (sum(len(text.encode()) for text in part) for part in (each.train, each.held_out))
        print(f"{each.name:10} {train_bytes} bytes in {len(each.train)} documents; held out {held_bytes}")
