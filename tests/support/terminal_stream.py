"""A stream that is a terminal, or not, and keeps what is written."""

import io


class TerminalStream(io.StringIO):
    """Text in memory. `is_terminal` is what isatty() returns."""

    def __init__(self, *, is_terminal: bool = True) -> None:
        super().__init__()
        self._is_terminal = is_terminal

    def isatty(self) -> bool:
        return self._is_terminal
