"""Sends streamed requests to a server and records when each part of each response arrived."""

import asyncio
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import orjson

from server.bench.http_client import Endpoint, HttpError, Response, reason_of, request
from server.bench.unreachable import unreachable
from server.bench.workload import BenchRequest

Api = Literal["completions", "chat"]
_PATHS = {"completions": "/v1/completions", "chat": "/v1/chat/completions"}
_DONE = b"[DONE]"


@dataclass
class RequestTiming:
    """Times of one request as its client measured them, in seconds of time.perf_counter()."""

    start_s: float  # when it was sent (closed loop) or due (open loop)
    chunk_s: list[float] = field(default_factory=list)  # arrival times of chunks with text
    end_s: float = 0.0
    prompt_tokens: int = 0
    output_tokens: int = 0
    # The server sent no usage: each chunk with text counts as a token, and the prompt as none.
    counts_chunks: bool = False
    error: str | None = None


@dataclass(frozen=True)
class Target:
    """Server, model and form of the requests."""

    endpoint: Endpoint
    model: str
    api: Api = "completions"
    ignore_eos: bool = True  # outputs then have exactly max_tokens tokens

    def body(self, item: BenchRequest) -> bytes:
        """Return the JSON of a request: greedy, streamed, with usage."""
        fields: dict[str, object] = {
            "model": self.model,
            "max_tokens": item.max_tokens,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        if self.ignore_eos:
            fields["ignore_eos"] = True
        is_chat = self.api == "chat"
        fields |= {"messages": [{"role": "user", "content": item.prompt}]} if is_chat else {"prompt": item.prompt}
        return orjson.dumps(fields)


async def closed_loop(
    target: Target,
    requests: Iterable[BenchRequest],
    num_clients: int,
    on_end: Callable[[RequestTiming], None] = lambda timing: None,
) -> list[RequestTiming]:
    """Send all requests with `num_clients` clients; each sends its next request when its last one has ended.

    `on_end` is called with each request that has ended. `requests` may be drawn while they are sent.
    """
    timings: list[RequestTiming] = []
    waiting = iter(requests)

    async def client() -> None:
        for item in waiting:
            timings.append(await send(target, item, time.perf_counter()))
            on_end(timings[-1])

    await asyncio.gather(*(client() for _ in range(num_clients)))
    return timings


async def open_loop(
    target: Target, requests: Sequence[BenchRequest], on_end: Callable[[RequestTiming], None] = lambda timing: None
) -> list[RequestTiming]:
    """Send each request when it is due, even if earlier ones are still running. Its times count from then."""
    start_s = time.perf_counter()

    async def send_when_due(item: BenchRequest) -> RequestTiming:
        await asyncio.sleep(start_s + item.due_s - time.perf_counter())
        timing = await send(target, item, start_s + item.due_s)
        on_end(timing)
        return timing

    return await asyncio.gather(*map(send_when_due, requests))


async def send(target: Target, item: BenchRequest, start_s: float) -> RequestTiming:
    """Send one request and read its response. A failure becomes the timing's `error`."""
    timing = RequestTiming(start_s)
    try:
        async with request(target.endpoint, "POST", _PATHS[target.api], target.body(item)) as response:
            await _read_stream(response, timing)
    except (OSError, HttpError) as error:
        timing.error = reason_of(error)
    timing.end_s = time.perf_counter()
    return timing


async def _read_stream(response: Response, timing: RequestTiming) -> None:
    if response.status != 200:
        raise HttpError(f"HTTP {response.status}: {_error_message(await response.body())}")
    is_done = False
    rest = b""
    async for part in response.parts():
        now_s = time.perf_counter()
        *events, rest = (rest + part).split(b"\n\n")
        for event in events:
            is_done = _record_event(event, timing, now_s) or is_done
    if not is_done:
        raise HttpError("the stream ended without [DONE]")
    if not timing.prompt_tokens:
        timing.counts_chunks, timing.output_tokens = True, len(timing.chunk_s)


def _record_event(event: bytes, timing: RequestTiming, now_s: float) -> bool:
    """Add an SSE event to the timing; return True for the end of the stream. Raises HttpError for an error event."""
    payload = event.removeprefix(b"data: ")
    if payload == _DONE or not event.startswith(b"data: "):
        return payload == _DONE
    chunk = _parse_object(payload)
    if "error" in chunk:
        raise HttpError(_error_message(payload))
    if usage := chunk.get("usage"):
        timing.prompt_tokens, timing.output_tokens = usage["prompt_tokens"], usage["completion_tokens"]
    if any(map(_has_text, chunk.get("choices") or ())):
        timing.chunk_s.append(now_s)
    return False


def _has_text(choice: dict[str, Any]) -> bool:
    return bool(choice.get("text") or (choice.get("delta") or {}).get("content"))


def _parse_object(payload: bytes) -> dict[str, Any]:
    try:
        value = orjson.loads(payload)
    except orjson.JSONDecodeError:
        raise HttpError("an event is not JSON") from None
    if not isinstance(value, dict):
        raise HttpError("an event is not a JSON object")
    return value


def _error_message(body: bytes) -> str:
    """Return the message of an error body, or the beginning of a body of another form."""
    try:
        error = orjson.loads(body)["error"]
        return str(error["message"] if isinstance(error, dict) else error)
    except (orjson.JSONDecodeError, KeyError, TypeError):
        return body[:200].decode(errors="replace")


async def first_model(endpoint: Endpoint) -> str:
    """Return the first model id of /v1/models. Raises HttpError."""
    try:
        async with request(endpoint, "GET", "/v1/models") as response:
            body = await response.body()
    except OSError as error:
        raise HttpError(unreachable(error, endpoint.url, reason_of(error))) from None
    if response.status != 200:
        raise HttpError(f"/v1/models: HTTP {response.status}: {_error_message(body)}")
    try:
        return str(orjson.loads(body)["data"][0]["id"])
    except (orjson.JSONDecodeError, LookupError, TypeError):
        raise HttpError("/v1/models lists no model: give --model") from None
