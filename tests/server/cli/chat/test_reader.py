"""server/cli/chat/reader.py: messages from a terminal or a pipe."""

import builtins
import io
from pathlib import Path

import pytest

from server.cli.chat.reader import MessageReader, answer_lines, converse
from server.cli.chat.session import ChatSession
from server.cli.colours import WITHOUT_COLOURS


def messages_of(text: str) -> list[str]:
    lines = iter(text.splitlines())
    prompts: list[str] = []

    def read_line(prompt: str) -> str:
        prompts.append(prompt)
        try:
            return next(lines)
        except StopIteration:
            raise EOFError from None

    reader = MessageReader(read_line)
    found = list(iter(reader.read, None))
    assert set(prompts) <= {"> ", "... "}
    return [message for message in found if message is not None]


def test_a_message_is_a_line_or_what_stands_between_triple_quotes() -> None:
    assert messages_of(" one \ntwo") == ["one", "two"]
    assert messages_of('"""\ndef f():\n    return 1\n"""\nnext') == ["def f():\n    return 1", "next"]
    assert messages_of('"""in one line"""\n"""first\n/quit\nlast"""') == ["in one line", "first\n/quit\nlast"]
    assert messages_of('"""never ended') == []


class Recorder(ChatSession):
    def __init__(self) -> None:
        self.messages: list[str] = []
        self.has_failed = False

    def handle_line(self, line: str, *, with_stats: bool) -> None:
        self.messages.append(line)


def test_lines_of_a_pipe_are_answered_until_quit_without_a_prompt() -> None:
    session = Recorder()
    assert answer_lines(session, io.StringIO("a\nb\n/quit\nc\n"), with_stats=False)
    assert session.messages == ["a", "b"]
    session.has_failed = True
    assert not answer_lines(session, io.StringIO(""), with_stats=False)


def test_a_history_that_cannot_be_kept_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = iter(["a", "/quit"])
    monkeypatch.setattr(builtins, "input", lambda _: next(lines))
    (tmp_path / "file").touch()
    session = Recorder()
    converse(session, tmp_path / "file" / "history", WITHOUT_COLOURS, with_stats=False, is_plain=True)
    assert session.messages == ["a"]
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("the lines of this chat are not kept") and str(tmp_path) in line
