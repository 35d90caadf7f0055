"""server/api/formats/event_reply.py: the parts of a choice reach the endpoint's methods in order."""

from collections.abc import Mapping
from typing import Any

from server.api.formats.event_reply import Event, EventReply
from server.generation.usage import Usage
from tests.support.chat_chunks import FULL_CHOICE, TEXT_THEN_CALLS, USAGE


class Recorder(EventReply):
    """Makes an event of each call of its methods."""

    def begin(self, usage: Usage) -> list[Event]:
        return [{"begin": usage}]

    def end(self, usage: Usage) -> list[Event]:
        return [{"end": usage}]

    def _add_text(self, text: str, logprobs: object) -> list[Event]:
        return [{"text": text}]

    def _add_call(self, call: Mapping[str, Any]) -> list[Event]:
        return [{"call": call["function"].get("name"), "arguments": call["function"]["arguments"]}]

    def _finish(self, choice: Mapping[str, Any]) -> None:
        self.reason = choice["finish_reason"]


def test_chunks_and_a_full_choice_have_the_same_parts() -> None:
    streamed, full = Recorder(), Recorder()
    events = [event for choice in TEXT_THEN_CALLS for event in streamed.chunk(choice)]
    assert [event["text"] for event in events if "text" in event] == ["Let ", "me"]
    assert "".join(event["arguments"] for event in events if "call" in event) == '{"x":1}'
    assert full.chunk(FULL_CHOICE) == [
        {"text": "Let me"},
        {"call": "f", "arguments": '{"x":1}'},
        {"call": "g", "arguments": ""},
    ]
    assert streamed.reason == full.reason == "tool_calls"
    assert [*full.begin(USAGE), *full.end(USAGE)] == [{"begin": USAGE}, {"end": USAGE}]
