"""The share of a mapped file in huge pages, from the kernel's text."""

from pathlib import Path

import pytest

from model.pack.huge_page_share import huge_page_share

ENTRY = """{range} r--s 00000000 fe:00 12 {name}
Size:             {rss} kB
Rss:              {rss} kB
AnonHugePages:         0 kB
FilePmdMapped:    {huge} kB
"""


def smaps(path: Path, *entries: tuple[str, int, int]) -> Path:
    text = "".join(
        ENTRY.format(range=f"7f{index:04x}00000000-7f{index:04x}0fffffff", name=name, rss=rss, huge=huge)
        for index, (name, rss, huge) in enumerate(entries)
    )
    (path / "smaps").write_text(text)
    return path / "smaps"


def test_the_share_is_that_of_all_maps_of_the_file_and_of_no_other(tmp_path: Path) -> None:
    file = Path("/models/p/weights.smoe")
    text = smaps(tmp_path, (str(file), 6000, 4096), ("/models/q/weights.smoe", 9000, 9000), (str(file), 2000, 2048))
    assert huge_page_share(file, text) == pytest.approx(6144 / 8000)


def test_nothing_is_said_without_pages_or_without_the_kernels_count(tmp_path: Path) -> None:
    file = Path("/models/p/weights.smoe")
    assert huge_page_share(file, smaps(tmp_path, (str(file), 0, 0))) is None
    assert huge_page_share(Path("/other"), smaps(tmp_path, (str(file), 8, 8))) is None
    old = tmp_path / "old"
    old.write_text(ENTRY.format(range="7f0000-7f1000", name=file, rss=8, huge=8).replace("FilePmdMapped", "Other"))
    assert huge_page_share(file, old) is None
    assert huge_page_share(file, tmp_path / "missing") is None
