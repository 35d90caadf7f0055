"""Messages of a chat: lines of a terminal, a file or a pipe."""

import contextlib
import readline
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from server.cli.chat.session import ChatSession
from server.cli.colours import WITHOUT_COLOURS, Colours
from server.cli.terminal_text import write_note

PROMPT, CONTINUED = "> ", "... "
QUOTES = '"""'
HISTORY_LENGTH = 1000


def answer_lines(session: ChatSession, lines: Iterable[str], *, with_stats: bool) -> bool:
    """Answer each line of a file or a pipe, without prompts. Return whether no request failed."""
    source = iter(lines)
    reader = MessageReader(lambda _: _next_line(source))
    while (message := reader.read()) is not None and message != "/quit":
        session.handle_line(message, with_stats=with_stats)
    return not session.has_failed


def converse(
    session: ChatSession, history: Path, colours: Colours, *, with_stats: bool, is_plain: bool = False
) -> None:
    """Read messages until the user leaves. `history` keeps the lines of earlier chats for the arrow keys.

    `is_plain`: the terminal obeys no control sequences, so that pasted lines cannot be told from typed ones.
    """
    reader = MessageReader(input, colours)
    if not is_plain:
        readline.parse_and_bind("set enable-bracketed-paste on")  # Python turns it off
    with contextlib.suppress(OSError):  # there is none yet, or it cannot be read
        readline.read_history_file(history)
    readline.set_history_length(HISTORY_LENGTH)
    try:
        while _handle_message(session, reader, with_stats=with_stats):
            pass
    finally:
        _keep(history)


def _keep(history: Path) -> None:
    try:
        history.parent.mkdir(parents=True, exist_ok=True)
        readline.write_history_file(history)
    except OSError as error:
        write_note(f"the lines of this chat are not kept: {history}: {error.strerror}\n", sys.stderr)


class MessageReader:
    """Reads messages: a line each, or the lines between two triple quotes."""

    def __init__(self, read_line: Callable[[str], str], colours: Colours = WITHOUT_COLOURS) -> None:
        """`read_line` takes the prompt and raises EOFError at the end of the input."""
        self._read_line = read_line
        self._prompt, self._continued = colours.prompt(PROMPT), colours.prompt(CONTINUED)

    def read(self) -> str | None:
        """Return the next message without blanks around it; None at the end of the input."""
        try:
            line = self._read_line(self._prompt).strip()
            if not line.startswith(QUOTES):
                return line
            return self._rest(line.removeprefix(QUOTES)).strip()
        except EOFError:
            return None

    def _rest(self, text: str) -> str:
        while QUOTES not in text:
            text += "\n" + self._read_line(self._continued)
        return text.partition(QUOTES)[0]


def _next_line(lines: Iterator[str]) -> str:
    for line in lines:
        return line.rstrip("\n")
    raise EOFError


def _handle_message(session: ChatSession, reader: MessageReader, *, with_stats: bool) -> bool:
    """Handle one message; return False if the user leaves. Ctrl-C discards it, also around its answer."""
    try:
        message = reader.read()
        if message is None:
            print()  # noqa: T201  # the shell's prompt gets a line of its own
        if message is None or message == "/quit":
            return False
        session.handle_line(message, with_stats=with_stats)
    except KeyboardInterrupt:
        print()  # noqa: T201
    return True
