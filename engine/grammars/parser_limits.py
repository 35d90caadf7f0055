"""Compute how many grammar parsers may live at once, from the memory limit. Arithmetic only."""

from engine.capacity.memory_share import scaled

PARSER_BYTES = 48 << 20  # of one parser at llguidance's limits: 50,000 lexer states of about 1 kB each
SHARE_OF_LIMIT = 8  # parsers get one part of the memory limit
DEFAULT_BYTES = 4 << 30  # where no limit is known
AMPLE_PARSERS = 2


def max_parsers(limit_bytes: int | None, memory_share: float = 1.0) -> int:
    """Return the bound on HTTP requests with a grammar, for a memory limit; None: no limit is known. At least 1.

    `memory_share`: of engine/capacity/memory_share.py.
    """
    part = DEFAULT_BYTES if limit_bytes is None else limit_bytes // SHARE_OF_LIMIT
    return scaled(max(1, part // PARSER_BYTES), AMPLE_PARSERS, 1, memory_share)
