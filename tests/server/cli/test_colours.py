"""Colours are written only to terminals that have them, and only where the user wants them."""

import pytest

from server.cli.colours import Colours, colours_of
from server.cli.terminal_text import write_note
from tests.support.terminal_stream import TerminalStream


@pytest.mark.parametrize(
    ("is_terminal", "kind", "no_color", "expected"),
    [
        (True, "xterm-256color", None, True),
        (True, "xterm-256color", "", True),  # an empty NO_COLOR counts as unset
        (True, "xterm-256color", "1", False),
        (True, "dumb", None, False),
        (True, None, None, False),
        (False, "xterm-256color", None, False),
    ],
)
def test_colours_need_a_terminal_that_has_them_and_no_NO_COLOR(
    is_terminal: bool, kind: str | None, no_color: str | None, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("TERM", kind), ("NO_COLOR", no_color)):
        monkeypatch.delenv(name, raising=False)
        if value is not None:
            monkeypatch.setenv(name, value)
    stream = TerminalStream(is_terminal=is_terminal)
    assert colours_of(stream).is_on is expected
    write_note("7 tokens\x1b[31m\n", stream)
    shown = "7 tokens\\x1b[31m" if is_terminal else "7 tokens\x1b[31m"
    assert stream.getvalue() == (f"\x1b[2m{shown}\x1b[0m\n" if expected else f"{shown}\n")


def test_a_prompt_hides_its_codes_from_readline() -> None:
    assert Colours(is_on=True).prompt("> ") == "\001\x1b[1;36m\002> \001\x1b[0m\002"
    assert Colours(is_on=False).prompt("> ") == "> "
