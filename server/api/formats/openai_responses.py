"""A chat's reply in the format of OpenAI's Responses: one response of output items, or the events that build it.

Works on the choices that /v1/chat/completions would send, and knows nothing of tokens.
"""

import json
import re
from collections.abc import Mapping
from typing import Any

from server.api.formats.event_reply import Entries, Event, EventReply
from server.api.formats.json_pieces import JsonList
from server.errors import ApiError
from server.generation.usage import Usage, expert_tokens
from server.schemas.responses_api.request import ResponsesRequest
from server.schemas.responses_api.tools import CUSTOM_INPUT, CustomTool
from server.schemas.validation import RequestModel
from server.strict_json import parse_object

# The start of a custom tool's arguments: its text, as far as complete characters go.
_CUT_INPUT = re.compile(rf'\s*{{\s*"{CUSTOM_INPUT}"\s*:\s*"((?:[^"\\]|\\(?:["\\/bfnrt]|u[0-9a-fA-F]{{4}}))*)')


class ResponsesReply(EventReply):
    """Builds `response` from the chunks of a chat. Log probabilities are kept as JSON, which the last events share."""

    def __init__(self, response_id: str, created_s: int, request: ResponsesRequest, model: str) -> None:
        self._id = response_id
        self._num_events = 0
        self._callees = {callee.name: callee for callee in request.callees}
        self._arguments = ""  # of the last call
        self._is_open = False  # true while the last output item is incomplete
        self.response: Event = {
            "id": response_id,
            "object": "response",
            "created_at": created_s,
            "status": "in_progress",
            "error": None,
            "incomplete_details": None,
            "output": [],
            "usage": None,
            "previous_response_id": None,
            "reasoning": {"effort": None, "summary": None},
            "store": False,
            "truncation": request.truncation,
            "top_logprobs": request.top_logprobs or 0,
            "model": model,
            **_repeated_fields(request),
        }

    def begin(self, usage: Usage) -> list[Event]:
        empty = {**self.response, "output": []}
        return [self._event("response.created", response=empty), self._event("response.in_progress", response=empty)]

    def end(self, usage: Usage) -> list[Event]:
        """Return the last events. A response always has an item, even if its text is empty."""
        events = self._close() if self.response["output"] else [*self._open_text(), *self._close()]
        self.response["status"] = "incomplete" if self.response["incomplete_details"] else "completed"
        self.response["usage"] = _usage(usage)
        return [*events, self._event(f"response.{self.response['status']}", response=self.response)]

    def error(self, error: Mapping[str, str | None]) -> Event:
        """Return the last event of a failed stream.

        OpenAI's clients read the object `error`; its documentation puts the fields at the top. The event has both.
        """
        return self._event("error", **{**error, "type": "error", "error": error})

    def _finish(self, choice: Mapping[str, Any]) -> None:
        if choice["finish_reason"] == "length":
            self.response["incomplete_details"] = {"reason": "max_output_tokens"}

    @property
    def _has_open_text(self) -> bool:
        return self._is_open and self._item["type"] == "message"

    def _add_logprobs(self, logprobs: Entries) -> list[Event]:
        """Add entries without text to the open text: the end token comes with text or behind it, as the steps fall."""
        return self._add_text("", logprobs) if logprobs and self._has_open_text else []

    def _add_text(self, text: str, logprobs: Entries) -> list[Event]:
        events = [] if self._has_open_text else [*self._close(), *self._open_text()]
        part = self._item["content"][0]
        part["text"] += text
        if logprobs:
            logprobs = logprobs if isinstance(logprobs, JsonList) else JsonList(logprobs)
            part["logprobs"] = part["logprobs"] or JsonList()
            part["logprobs"].extend(logprobs)
        return [*events, self._part_event("response.output_text.delta", delta=text, logprobs=logprobs)]

    def _add_call(self, call: Mapping[str, Any]) -> list[Event]:
        function = call["function"]
        events: list[Event] = []
        if "id" in call:
            events = [*self._close(), *self._open_call(call["id"], function["name"])]
        arguments = function.get("arguments") or ""
        self._arguments += arguments
        if self._item["type"] == "custom_tool_call":
            return events  # its input is a text inside the arguments, which are sent when they are complete
        self._item["arguments"] = self._arguments
        if arguments:
            events.append(self._item_event("response.function_call_arguments.delta", delta=arguments))
        return events

    def _open_text(self) -> list[Event]:
        item: Event = {"id": self._item_id("msg"), "type": "message", "role": "assistant", "content": []}
        events = self._open(item)
        part: Event = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
        item["content"] = [part]
        return [*events, self._part_event("response.content_part.added", part={**part, "logprobs": []})]

    def _open_call(self, call_id: str, name: str) -> list[Event]:
        """Open a call under the name, namespace and kind that its tool has in the request."""
        self._arguments = ""
        callee = self._callees.get(name)
        fields = {"call_id": call_id, "name": callee.tool.name if callee else name}
        if callee and callee.namespace is not None:
            fields["namespace"] = callee.namespace
        if callee and isinstance(callee.tool, CustomTool):
            return self._open({"id": self._item_id("ctc"), "type": "custom_tool_call", **fields, "input": ""})
        return self._open({"id": self._item_id("fc"), "type": "function_call", **fields, "arguments": ""})

    def _open(self, item: Event) -> list[Event]:
        item["status"] = "in_progress"
        self.response["output"].append(item)
        self._is_open = True
        index = len(self.response["output"]) - 1
        return [self._event("response.output_item.added", output_index=index, item=dict(item))]

    def _close(self) -> list[Event]:
        if not self._is_open:
            return []
        self._is_open = False
        item = self._item
        item["status"] = "incomplete" if self.response["incomplete_details"] else "completed"
        events = self._done_events(item)
        index = len(self.response["output"]) - 1
        done = self._event("response.output_item.done", output_index=index, item=item)
        return [*events, done]

    def _done_events(self, item: Event) -> list[Event]:
        """Return the events that repeat the whole content of the item that ends."""
        if item["type"] == "message":
            part = item["content"][0]
            return [
                self._part_event("response.output_text.done", text=part["text"], logprobs=part["logprobs"]),
                self._part_event("response.content_part.done", part=part),
            ]
        if item["type"] == "custom_tool_call":
            item["input"] = _custom_input(self._arguments)
            return [
                self._item_event("response.custom_tool_call_input.delta", delta=item["input"]),
                self._item_event("response.custom_tool_call_input.done", input=item["input"]),
            ]
        done = "response.function_call_arguments.done"
        return [self._item_event(done, name=item["name"], arguments=item["arguments"])]

    @property
    def _item(self) -> Event:
        item: Event = self.response["output"][-1]
        return item

    def _item_id(self, prefix: str) -> str:
        return f"{prefix}_{len(self.response['output'])}_{self._id.removeprefix('resp_')}"

    def _part_event(self, kind: str, **fields: Any) -> Event:
        return self._item_event(kind, content_index=0, **fields)

    def _item_event(self, kind: str, **fields: Any) -> Event:
        index = len(self.response["output"]) - 1
        return self._event(kind, item_id=self._item["id"], output_index=index, **fields)

    def _event(self, kind: str, **fields: Any) -> Event:
        event = {"type": kind, "sequence_number": self._num_events, **fields}
        self._num_events += 1
        return event


def _repeated_fields(request: ResponsesRequest) -> Event:
    """Return the request's fields that the reply repeats."""
    format_ = request.text.format if request.text else None
    text = _repeated(format_) if format_ else {"type": "text"}
    return {
        "instructions": request.instructions,
        "max_output_tokens": request.max_output_tokens,
        "temperature": request.temperature,
        "top_p": request.top_p,
        "text": {"format": text},
        "tools": _repeated(request.tools),
        "tool_choice": request.tool_choice.repeated if request.tool_choice else "auto",
        "parallel_tool_calls": request.parallel_tool_calls is not False,
        "metadata": request.metadata,
        "user": request.user,
    }


def _repeated(value: Any) -> Any:
    """Return what the request has, without null members. Schemas are shared, not copied: they may be large."""
    if isinstance(value, RequestModel):
        members = {field.alias or name: getattr(value, name) for name, field in type(value).model_fields.items()}
        repeated = {name: _repeated(member) for name, member in members.items() if member is not None}
        return {**repeated, **(value.model_extra or {})}
    if isinstance(value, list):
        return list(map(_repeated, value))
    return value


def _custom_input(arguments: str) -> str:
    """Return the text inside the arguments of a custom tool's call, as far as a limit let it be written."""
    try:
        return str(parse_object(arguments.encode())[CUSTOM_INPUT])
    except (ApiError, KeyError):
        found = _CUT_INPUT.match(arguments)
        text = str(json.loads(f'"{found[1]}"')) if found else ""
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "ignore")  # half of a pair may be there


def _usage(usage: Usage) -> Event:
    return {
        "input_tokens": usage["prompt_tokens"],
        "input_tokens_details": {
            "cached_tokens": usage["prompt_tokens_details"]["cached_tokens"],
            "cache_write_tokens": 0,
        },
        "output_tokens": usage["completion_tokens"],
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": usage["total_tokens"],
        **expert_tokens(usage),
    }
