"""How many grammar parsers may live at once, from the memory limit. Arithmetic only."""

PARSER_BYTES = 48 << 20  # of one parser at llguidance's limits: 50,000 lexer states of about 1 kB each
SHARE_OF_LIMIT = 8  # parsers get one part of the memory limit
DEFAULT_BYTES = 4 << 30  # where no limit is known


def max_parsers(limit_bytes: int | None) -> int:
    """Return the bound on HTTP requests with a grammar, for a memory limit; None: no limit is known. At least 1."""
    share = DEFAULT_BYTES if limit_bytes is None else limit_bytes // SHARE_OF_LIMIT
    return max(1, share // PARSER_BYTES)
