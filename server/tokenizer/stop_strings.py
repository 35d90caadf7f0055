"""Stop strings in a text that arrives in pieces."""

from collections.abc import Sequence


class StopStringMatcher:
    """Filter that passes text on until a stop string is complete, and holds back only a possible beginning of one.

    The cut does not depend on how the text was split: the stop string that is complete first wins; of several that are
    complete at the same character, the longest. With ("abc", "b"), "xabc" is cut to "xa", as "b" is complete first.
    """

    def __init__(self, stop: Sequence[str], include: bool = False) -> None:
        """`include`: pass on the stop string itself as well."""
        self._stop = tuple(stop)
        self._include = include
        self._pending = ""

    def push(self, text: str) -> tuple[str, str | None]:
        """Return the text that is safe to send, and the stop string that ended it or None. Push nothing after one."""
        if not self._stop:
            return text, None
        self._pending += text
        match = self._first_complete()
        if match is not None:
            end, stop = match
            safe, self._pending = self._pending[: end if self._include else end - len(stop)], ""
            return safe, stop
        start = min(_partial_match_start(self._pending, stop) for stop in self._stop)
        safe, self._pending = self._pending[:start], self._pending[start:]
        return safe, None

    def finish(self) -> str:
        """Return the text still held back, when the text ends without a stop string."""
        rest, self._pending = self._pending, ""
        return rest

    def _first_complete(self) -> tuple[int, str] | None:
        """Find the stop string that ends first. Returns the end of its match and the stop string, or None."""
        found = [(start + len(stop), stop) for stop in self._stop if (start := self._pending.find(stop)) >= 0]
        return min(found, key=lambda match: (match[0], -len(match[1])), default=None)


def _partial_match_start(text: str, stop: str) -> int:
    """Find the start of the tail of `text` that is a beginning of `stop`; len(text) if there is no such tail."""
    start = text.find(stop[0], max(0, len(text) - len(stop) + 1))
    while start >= 0 and not stop.startswith(text[start:]):
        start = text.find(stop[0], start + 1)
    return len(text) if start < 0 else start
