"""One line about mapped weights in small pages."""

import logging
from pathlib import Path

import pytest

from engine.startup import small_pages
from engine.startup.small_pages import log_small_pages


@pytest.mark.parametrize(("share", "is_logged"), [(0.79, True), (0.8, False), (1.0, False), (None, False)])
def test_less_than_four_fifths_in_huge_pages_is_one_line(
    share: float | None,
    is_logged: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    file = tmp_path / "weights.smoe"
    file.write_bytes(bytes(100))
    monkeypatch.setattr(small_pages, "huge_page_share", lambda path: share)
    with caplog.at_level(logging.WARNING):
        log_small_pages(file, least_bytes=100)
        log_small_pages(file, least_bytes=101)
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == is_logged
    if is_logged:
        assert lines[0].startswith("79 % of the mapped weights lie in huge pages, so") and str(file) in lines[0]
