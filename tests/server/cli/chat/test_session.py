"""server/cli/chat/session.py: requests of a conversation, and the commands inside it."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from server.cli.chat.session import ChatSession
from server.cli.client.api_client import NO_HEADERS, ApiClient, ApiError


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


class Server(ApiClient):
    """Client without a server: keeps the bodies of requests and answers each with its number."""

    def __init__(self) -> None:
        self.bodies: list[dict[str, Any]] = []
        self.experts: Any = {"layers": [{"tokens": [0] * 8}]}

    def get(self, path: str) -> Any:
        if self.experts is None:
            raise ApiError("no such path")
        return self.experts

    def stream(
        self, path: str, fields: Mapping[str, object], headers: Mapping[str, str] = NO_HEADERS
    ) -> Iterator[dict[str, Any]]:
        self.bodies.append(dict(fields))
        text = f"answer {len(self.bodies)}"
        logprobs = {"content": [{"token": text, "logprob": -5.0}]} if fields.get("logprobs") else None
        yield {"choices": [{"delta": {"content": text}, "logprobs": logprobs, "finish_reason": "stop"}]}


class Chat:
    """A conversation with `Server`, and what it wrote."""

    def __init__(self) -> None:
        self.server = Server()
        self.notes: list[str] = []
        self.session = ChatSession(self.server, "m", {"seed": 3}, "Be brief.", lambda text: None, self.notes.append)

    def say(self, *lines: str) -> None:
        for line in lines:
            self.session.handle_line(line, with_stats=False)

    def last(self) -> list[str]:
        """The texts of the last request's messages."""
        return [message["content"] for message in self.server.bodies[-1]["messages"]]


def test_again_replaces_the_last_answer() -> None:
    chat = Chat()
    chat.say("/again", "one", "two", "/again", "three")
    assert chat.notes == ["no message was answered yet\n"]
    assert chat.server.bodies[1]["messages"] == chat.server.bodies[2]["messages"]
    assert chat.last() == ["Be brief.", "one", "answer 1", "two", "answer 3", "three"]


def test_a_value_that_no_request_may_have_is_refused_at_once_and_the_one_before_stays() -> None:
    chat = Chat()
    chat.say("/k 4", "/set temperature 9", "/k 9", "/set experts_per_token 99", "one")
    assert chat.notes[1:] == [
        "temperature should be at most 2\n",
        "experts_per_token should be at most 8\n",
        "experts_per_token should be at most 8\n",
    ]
    assert chat.server.bodies[0]["experts_per_token"] == 4 and "temperature" not in chat.server.bodies[0]
    for unknown in (None, {"layers": []}, {"error": "another server"}):
        chat.server.experts = unknown
        chat.say("/k 9", "two")
        assert chat.server.bodies[-1]["experts_per_token"] == 9
        chat.say("/k 4")


def test_settings_and_the_number_of_experts_hold_for_the_next_requests() -> None:
    chat = Chat()
    chat.say("/set temperature 0.5", "/k 4", "/set seed", "one", "/k", "two")
    first, second = chat.server.bodies
    assert (first["temperature"], first["experts_per_token"]) == (0.5, 4) and "seed" not in first
    assert "experts_per_token" not in second and second["temperature"] == 0.5
    chat.say("/set speed 9")
    assert chat.notes[-1].startswith("/set takes one of")


def test_the_system_message_is_replaced_also_after_a_reset() -> None:
    chat = Chat()
    chat.say("one", "/system Be long.", "two")
    assert chat.last() == ["Be long.", "one", "answer 1", "two"]
    chat.say("/reset", "three")
    assert chat.last() == ["Be long.", "three"]
    chat.say("/system", "four")
    assert chat.last() == ["three", "answer 3", "four"]


def test_a_saved_conversation_goes_on_in_another_chat(tmp_path: Path) -> None:
    chat, other = Chat(), Chat()
    chat.say("one", f"/save {tmp_path}/chat.json")
    other.say(f"/load {tmp_path}/chat.json", "two")
    assert other.last() == ["Be brief.", "one", "answer 1", "two"]
    other.say("/load nowhere.json")
    assert "No such file" in other.notes[-1]


def test_tokens_are_marked_until_the_command_is_given_again(capsys: pytest.CaptureFixture[str]) -> None:
    chat = Chat()
    chat.say("/tokens", "one", "/tokens", "two")
    assert chat.server.bodies[0]["logprobs"] is True and "logprobs" not in chat.server.bodies[1]
    assert capsys.readouterr().out == "answer 1{1%}"


def test_every_command_is_in_the_help_and_an_unknown_one_names_it() -> None:
    chat = Chat()
    chat.say("/help", "/nonsense")
    for command in ("/again", "/quit", *chat.session._commands.keys() - {"/help"}):
        assert command in chat.notes[0]
    assert "/help" in chat.notes[1]
