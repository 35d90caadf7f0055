"""httpx-sse, which parses events strictly by the specification."""

import json

import httpx
from httpx_sse import connect_sse

from tests.support.servers.running import MODEL, RunningServer


def test_events_are_read_to_the_end(server: RunningServer) -> None:
    body = {"model": MODEL, "prompt": "Hello", "max_tokens": 5, "ignore_eos": True, "stream": True}
    with (
        httpx.Client(timeout=60) as client,
        connect_sse(client, "POST", server.url + "/v1/completions", json=body) as source,
    ):
        events = list(source.iter_sse())
    assert events[-1].data == "[DONE]"
    assert {event.event for event in events} == {"message"}
    chunks = [json.loads(event.data) for event in events[:-1]]
    assert chunks[-1]["choices"][0]["finish_reason"] == "length"
    assert len({chunk["id"] for chunk in chunks}) == 1
