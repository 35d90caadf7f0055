"""Text from a server, made harmless for a terminal.

Control characters in a model's text would be obeyed by the terminal: they move the cursor, recolor, overwrite earlier
lines, and with OSC 52 write the clipboard.
"""

import re
from typing import TextIO

from server.cli.colours import colours_of

# All control characters but newline and tab; line separators; overrides and isolates, which reorder what is shown;
# halves of surrogate pairs, which cannot be written.
UNSAFE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def escape_controls(text: str) -> str:
    r"""Write characters that a terminal may obey as \x1b or \u202e. Newlines and tabs stay."""
    return UNSAFE.sub(_escape, text)


def write_text(text: str, stream: TextIO) -> None:
    """Write and flush: text is shown while it is generated. Only a terminal gets control characters escaped."""
    stream.write(escape_controls(text) if stream.isatty() else text)
    stream.flush()


def write_note(text: str, stream: TextIO) -> None:
    """Write text that is no answer: dimmed on a terminal with colours."""
    if not stream.isatty():
        stream.write(text)
    else:
        line = escape_controls(text).removesuffix("\n")
        stream.write(colours_of(stream).dim(line) + "\n" * text.endswith("\n"))
    stream.flush()


def _escape(match: re.Match[str]) -> str:
    code = ord(match[0])
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"
