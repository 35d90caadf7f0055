"""Messages of the chat, from a terminal or a pipe, and bars of GET /experts."""

import io
from collections.abc import Iterator, Mapping
from typing import Any

from server.cli.api_client import NO_HEADERS, ApiClient
from server.cli.chat import ChatSession, MessageReader, answer_lines, expert_lines


def test_a_bar_is_half_full_at_twice_the_even_share() -> None:
    layer = {"layer": 3, "tokens": [8, 4, 2, 2], "share": [0.5, 0.25, 0.125, 0.125]}
    assert expert_lines({"layers": [layer]}) == ["layer 3  |▄▂▁▁|  most: expert 0, 50%"]


def test_a_bar_is_never_more_than_full() -> None:
    share = [1.0, *[0.0] * 7]
    [line] = expert_lines({"layers": [{"layer": 0, "tokens": [1, *[0] * 7], "share": share}]})
    assert "|█       |" in line


def test_without_experts_or_tokens_a_line_says_so() -> None:
    assert expert_lines({"layers": []}) == ["this model has no experts"]
    idle = {"layer": 0, "tokens": [0, 0], "share": [0.0, 0.0]}
    assert expert_lines({"layers": [idle]}) == ["no tokens in the last minute"]


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


class HeaderRecorder(ApiClient):
    """Client without a server: keeps the headers of each request and answers with an empty stream."""

    def __init__(self) -> None:
        self.sent: list[Mapping[str, str]] = []

    def stream(
        self, path: str, fields: Mapping[str, object], headers: Mapping[str, str] = NO_HEADERS
    ) -> Iterator[dict[str, Any]]:
        self.sent.append(headers)
        return iter(())


def test_a_conversation_has_one_random_session_id_and_a_new_one_after_a_reset() -> None:
    client = HeaderRecorder()
    for _ in range(2):
        session = ChatSession(client, "m", {}, None, lambda text: None)
        for line in ("one", "two", "/reset", "three"):
            session.handle_line(line, with_stats=False)
    ids = [headers["X-Session-Id"] for headers in client.sent]
    assert ids[0] == ids[1] and ids[3] == ids[4]
    assert len(set(ids)) == 4
