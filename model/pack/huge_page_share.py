"""Measure how much of a mapped file lies in huge pages, by the kernel's account. No torch.

Source: man 5 proc_pid_smaps (FilePmdMapped: Linux 5.4 and later).
"""

import re
from pathlib import Path

SMAPS = Path("/proc/self/smaps")


def huge_page_share(file: Path, smaps: Path = SMAPS) -> float | None:
    """Return the share of this process' mapped pages of `file` that lie in huge pages; None if it has mapped none, or
    if the kernel does not count them."""
    mapped, huge, is_file, is_counted = 0, 0, False, False
    try:
        lines = smaps.read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
            is_file = line.endswith(f" {file}")
        elif is_file and (match := re.match(r"(Rss|FilePmdMapped):\s+(\d+) kB$", line)):
            is_counted |= match[1] == "FilePmdMapped"
            if match[1] == "Rss":
                mapped += int(match[2])
            else:
                huge += int(match[2])
    return huge / mapped if mapped and is_counted else None
