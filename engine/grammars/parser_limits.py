"""How many grammar parsers may live at once, from the memory limit. Arithmetic only."""

from dataclasses import dataclass

PARSER_BYTES = 48 << 20  # of one parser at llguidance's limits: 50,000 lexer states of about 1 kB each
SHARE_OF_LIMIT = 8  # parsers get one part of the memory limit
DEFAULT_BYTES = 4 << 30  # where no limit is known


@dataclass(frozen=True)
class ParserLimits:
    """Bounds on parsers that live at once."""

    num_requests: int  # HTTP requests with a grammar; the choices of each share a parser
    num_choices: int  # choices that got a parser of their own, because the shared one came to its limits

    @property
    def num_bytes(self) -> int:
        """The most memory that they take."""
        return (self.num_requests + self.num_choices) * PARSER_BYTES


def parser_limits(limit_bytes: int | None) -> ParserLimits:
    """Return the bounds for a memory limit; None: no limit is known. At least one of each kind may live."""
    total = (DEFAULT_BYTES if limit_bytes is None else limit_bytes // SHARE_OF_LIMIT) // PARSER_BYTES
    num_choices = max(1, total // 8)
    return ParserLimits(max(1, total - num_choices), num_choices)
