"""Log that mapped weights lie in small pages, which makes steps slower."""

import logging
from pathlib import Path

from model.pack.huge_page_share import huge_page_share

LEAST_SHARE = 0.8  # in huge pages
LEAST_BYTES = 1 << 30  # of a file: smaller ones lie in caches, or end within their only huge pages

log = logging.getLogger("smoe.engine")


def log_small_pages(file: Path, least_bytes: int = LEAST_BYTES) -> None:
    """Log one line if less than LEAST_SHARE of a mapped file lies in huge pages. Call it when its pages are read."""
    share = huge_page_share(file.resolve())
    if share is not None and share < LEAST_SHARE and file.stat().st_size >= least_bytes:
        log.warning(
            "%.0f %% of the mapped weights lie in huge pages, so steps are slower: %s was in memory in small pages; "
            "drop the page cache (echo 1 > /proc/sys/vm/drop_caches) and start again, or use --weights-memory copy",
            100 * share,
            file,
        )
