"""A chat's reply in the format of Anthropic's Messages: one message of content blocks, or the events that build it.

Works on the choices that /v1/chat/completions would send, and knows nothing of tokens.
"""

from collections.abc import Mapping
from typing import Any

from server.api.formats.event_reply import Event, EventReply, call_arguments
from server.generation.usage import Usage, expert_tokens

_STOP_REASONS = {"length": "max_tokens", "tool_calls": "tool_use", "stop": "end_turn"}


class MessagesReply(EventReply):
    """Builds `message` from the chunks of a chat."""

    def __init__(self, message_id: str, model: str) -> None:
        self.message: Event = {
            "id": message_id,
            "type": "message",
            "role": "assistant",
            "model": model,
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
            "usage": {"input_tokens": 0, "output_tokens": 0},
        }
        self._arguments = ""  # of the open call

    def begin(self, usage: Usage) -> list[Event]:
        self.message["usage"] = {**_usage(usage), "output_tokens": 0}
        return [{"type": "message_start", "message": {**self.message, "content": []}}]

    def end(self, usage: Usage) -> list[Event]:
        events = self._close()
        self.message["usage"] = _usage(usage)
        reasons = {"stop_reason": self.message["stop_reason"], "stop_sequence": self.message["stop_sequence"]}
        delta = {"type": "message_delta", "delta": reasons, "usage": self.message["usage"]}
        return [*events, delta, {"type": "message_stop"}]

    def _add_text(self, text: str, logprobs: object) -> list[Event]:
        blocks = self.message["content"]
        events = [] if blocks and blocks[-1]["type"] == "text" else self._open({"type": "text", "text": ""})
        blocks[-1]["text"] += text
        return [*events, self._delta({"type": "text_delta", "text": text})]

    def _add_call(self, call: Mapping[str, Any]) -> list[Event]:
        function = call["function"]
        events: list[Event] = []
        if "id" in call:
            events = self._open({"type": "tool_use", "id": call["id"], "name": function["name"], "input": {}})
        arguments = function.get("arguments") or ""
        self._arguments += arguments
        return [*events, self._delta({"type": "input_json_delta", "partial_json": arguments})] if arguments else events

    def _finish(self, choice: Mapping[str, Any]) -> None:
        self.message["stop_reason"] = _STOP_REASONS[choice["finish_reason"]]
        stop = choice.get("stop_reason")
        if choice["finish_reason"] == "stop" and isinstance(stop, str):
            self.message["stop_reason"], self.message["stop_sequence"] = "stop_sequence", stop

    def _open(self, block: Event) -> list[Event]:
        events = self._close()
        self.message["content"].append(block)
        index = len(self.message["content"]) - 1
        return [*events, {"type": "content_block_start", "index": index, "content_block": dict(block)}]

    def _close(self) -> list[Event]:
        blocks = self.message["content"]
        if not blocks:
            return []
        if blocks[-1]["type"] == "tool_use":
            blocks[-1]["input"], self._arguments = call_arguments(self._arguments), ""
        return [{"type": "content_block_stop", "index": len(blocks) - 1}]

    def _delta(self, delta: Event) -> Event:
        return {"type": "content_block_delta", "index": len(self.message["content"]) - 1, "delta": delta}


def _usage(usage: Usage) -> Event:
    """Convert to Anthropic's fields: `input_tokens` are computed prompt tokens, without those of the prefix cache."""
    cached = usage["prompt_tokens_details"]["cached_tokens"]
    return {
        "input_tokens": usage["prompt_tokens"] - cached,
        "cache_read_input_tokens": cached,
        "cache_creation_input_tokens": 0,
        "output_tokens": usage["completion_tokens"],
        **expert_tokens(usage),
    }
