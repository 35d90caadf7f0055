"""Colours for a terminal. Files, pipes, TERM=dumb and NO_COLOR (https://no-color.org) get none."""

from typing import TextIO

RESET = "\x1b[0m"


class Colours:
    """Wraps text in the terminal's codes, or returns it unchanged if colours are off."""

    def __init__(self, *, is_on: bool) -> None:
        self.is_on = is_on

    def bold(self, text: str) -> str:
        """Return bold text."""
        return self._wrap("1", text)

    def dim(self, text: str) -> str:
        """Return text in a weaker colour: figures and notes beside what matters."""
        return self._wrap("2", text)

    def good(self, text: str) -> str:
        """Return green text."""
        return self._wrap("32", text)

    def warning(self, text: str) -> str:
        """Return yellow text."""
        return self._wrap("33", text)

    def bad(self, text: str) -> str:
        """Return bold red text."""
        return self._wrap("1;31", text)

    def accent(self, text: str) -> str:
        """Return bold cyan text: prompts and headings."""
        return self._wrap("1;36", text)

    def prompt(self, text: str) -> str:
        """Return an accented prompt for readline, which must not count the codes as columns (\\001 and \\002)."""
        return f"\001\x1b[1;36m\002{text}\001{RESET}\002" if self.is_on else text

    def _wrap(self, code: str, text: str) -> str:
        return f"\x1b[{code}m{text}{RESET}" if self.is_on else text


WITHOUT_COLOURS = Colours(is_on=False)


def colours_of(stream: TextIO) -> Colours:
    """Return the colours for a stream: on only for a terminal that has them, and whose user wants them."""
    if not stream.isatty():
        return WITHOUT_COLOURS
    from server.settings.sources import allows_colours  # only here: commands without a terminal start faster

    return Colours(is_on=allows_colours())
