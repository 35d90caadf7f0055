"""Replies in a form in which equal means equal for a client: without times, and streams without their chunk borders."""

import json
from typing import Any

import httpx

Comparable = tuple[int, dict[str, str], Any]

TIMES = {"created", "created_at", "completed_at"}  # Unix time
JOINED = {"text", "content", "delta", "arguments", "partial_json", "thinking"}  # texts that arrive in parts
IGNORED_HEADERS = {"date", "content-length"}  # a time changes no length, but a chunked body has none


def comparable(reply: httpx.Response) -> Comparable:
    """Return status, headers and contents."""
    headers = {name: value for name, value in reply.headers.items() if name not in IGNORED_HEADERS}
    if reply.headers.get("content-type", "").startswith("text/event-stream"):
        return reply.status_code, headers, joined_events(reply.text)
    return reply.status_code, headers, without_times(json.loads(reply.text))


def without_times(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: without_times(member) for name, member in value.items() if name not in TIMES}
    return [without_times(member) for member in value] if isinstance(value, list) else value


def joined_events(body: str) -> dict[str, Any]:
    """Join the events of each type into one: several tokens may arrive in one event or in several."""
    joined: dict[str, Any] = {"lines that are no events": []}
    for line in body.split("\n"):
        if not line.startswith("data: {"):
            if line and not line.startswith((":", "event: ")):
                joined["lines that are no events"].append(line)
            continue
        event = without_times(json.loads(line.removeprefix("data: ")))
        event.pop("sequence_number", None)  # counts events
        kind = event.get("type", "chunk")
        joined[kind] = _join(joined[kind], event) if kind in joined else _by_index(event)
    return joined


def _by_index(event: Any) -> Any:
    """Return the event with its choices as a dict."""
    if "choices" in event:
        return event | {"choices": {choice["index"]: choice for choice in event["choices"]}}
    return event


def _join(first: Any, second: Any, name: Any = "") -> Any:
    """Append the parts of `second` to those of `first`; where there are no parts, the later value counts."""
    if isinstance(second, dict) and "choices" in second:
        second = _by_index(second)
    if first is None or second is None:
        return second if first is None else first
    if isinstance(first, dict) and isinstance(second, dict) and name != "usage":
        return {
            key: _join(first.get(key), second.get(key), key) for key in [*first, *(k for k in second if k not in first)]
        }
    if isinstance(first, str) and isinstance(second, str) and name in JOINED:
        return first + second
    return first + second if isinstance(first, list) and isinstance(second, list) else second
