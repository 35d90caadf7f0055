"""Stop strings, found in a text that arrives in pieces."""

from collections.abc import Sequence


class StopStringMatcher:
    """Passes text on until a stop string is complete, holding back only what could still become one.

    The cut does not depend on how the text was split: the stop string that is complete first wins; of several complete
    at the same character, the longest. With ("abc", "b"), "xabc" ends as "xa", because "b" was complete first.
    """

    def __init__(self, stop: Sequence[str], include: bool = False) -> None:
        """`include`: the stop string itself is passed on as well."""
        self._stop = tuple(stop)
        self._include = include
        self._held = ""

    def push(self, text: str) -> tuple[str, str | None]:
        """The text that is safe to send, and the stop string that ended it, if one did. Push nothing after that."""
        if not self._stop:
            return text, None
        self._held += text
        match = self._first_complete()
        if match is not None:
            end, stop = match
            safe, self._held = self._held[: end if self._include else end - len(stop)], ""
            return safe, stop
        open_from = min(_open_from(self._held, stop) for stop in self._stop)
        safe, self._held = self._held[:open_from], self._held[open_from:]
        return safe, None

    def finish(self) -> str:
        """What is still held back when the text ends without a stop string."""
        held, self._held = self._held, ""
        return held

    def _first_complete(self) -> tuple[int, str] | None:
        """Where a stop string ends first, and which."""
        found = [(start + len(stop), stop) for stop in self._stop if (start := self._held.find(stop)) >= 0]
        return min(found, key=lambda match: (match[0], -len(match[1])), default=None)


def _open_from(text: str, stop: str) -> int:
    """Where the tail of `text` starts that is the beginning of `stop`; len(text) where there is none."""
    start = text.find(stop[0], max(0, len(text) - len(stop) + 1))
    while start >= 0 and not stop.startswith(text[start:]):
        start = text.find(stop[0], start + 1)
    return len(text) if start < 0 else start
