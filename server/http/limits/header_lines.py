"""Limit on the header lines of a request, checked before h11 parses them, and the empty lines before a head.

A line costs the parser about 2 us, however short it is: 16,000 empty headers fit into the 64 KiB of a head.
"""

import re

import h11
from h11._receivebuffer import ReceiveBuffer, blank_line_regex

MAX_HEADER_LINES = 128
EMPTY_LINES = re.compile(rb"(?:\r?\n)*")


class HeaderLineLimit(ReceiveBuffer):
    """Receive buffer of an h11 connection that refuses heads and trailers with more than MAX_HEADER_LINES lines.

    The limit is on lines after the first one, which is the request line of a head. A continuation line counts too.
    """

    def maybe_extract_lines(self) -> list[bytearray] | None:
        """Return the lines up to the first blank one, None if it has not arrived. Raises h11.RemoteProtocolError.

        h11 has searched `_data` up to `_multiple_lines_search`, so each byte is searched once here, too. A blank line
        at the beginning ends empty trailers; the next request's head may follow and is checked when its turn comes.
        """
        if self._data.startswith((b"\n", b"\r\n")):
            return super().maybe_extract_lines()
        end = blank_line_regex.search(self._data, self._multiple_lines_search)
        if end is not None and self._data.count(b"\n", 0, end.start()) > MAX_HEADER_LINES:
            raise h11.RemoteProtocolError("too many header lines", error_status_hint=431)
        return super().maybe_extract_lines()

    def skip_empty_lines(self) -> bool:
        """Forget empty lines at the beginning, and return whether half of one is left. Call it where a head begins."""
        if self._data.startswith((b"\r\n", b"\n")):
            found = EMPTY_LINES.match(self._data)
            assert found is not None
            self._extract(found.end())
        return self._data == b"\r"
