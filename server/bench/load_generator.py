"""Puts work on a server, streamed, and keeps when each part of each answer came."""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import orjson

from server.bench.http_client import Endpoint, HttpError, Reply, request
from server.bench.workload import BenchRequest

Api = Literal["completions", "chat"]
_PATHS = {"completions": "/v1/completions", "chat": "/v1/chat/completions"}
_DONE = b"[DONE]"


@dataclass
class RequestTiming:
    """One request, as its client saw it. Seconds of time.perf_counter()."""

    start_s: float  # when it was due, or sent in a closed loop
    chunk_s: list[float] = field(default_factory=list)  # arrival of each chunk with text
    end_s: float = 0.0
    prompt_tokens: int = 0
    output_tokens: int = 0
    error: str | None = None


@dataclass(frozen=True)
class Target:
    """What is asked, and how."""

    endpoint: Endpoint
    model: str
    api: Api = "completions"
    ignore_eos: bool = True  # so that an answer has exactly the tokens that were asked for

    def body(self, work: BenchRequest) -> bytes:
        """A request's JSON: greedy, streamed, with usage."""
        fields: dict[str, object] = {
            "model": self.model,
            "max_tokens": work.max_tokens,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        if self.ignore_eos:
            fields["ignore_eos"] = True
        is_chat = self.api == "chat"
        fields |= {"messages": [{"role": "user", "content": work.prompt}]} if is_chat else {"prompt": work.prompt}
        return orjson.dumps(fields)


async def closed_loop(target: Target, work: Sequence[BenchRequest], num_clients: int) -> list[RequestTiming]:
    """Each client sends its next request when its last one has ended, until none is left."""
    records: list[RequestTiming] = []
    waiting = iter(work)

    async def client() -> None:
        for item in waiting:
            records.append(await ask(target, item, time.perf_counter()))

    await asyncio.gather(*(client() for _ in range(num_clients)))
    return records


async def open_loop(target: Target, work: Sequence[BenchRequest]) -> list[RequestTiming]:
    """Each request is sent when it is due, however many are still open; its times count from then."""
    start_s = time.perf_counter()

    async def due(item: BenchRequest) -> RequestTiming:
        await asyncio.sleep(start_s + item.due_s - time.perf_counter())
        return await ask(target, item, start_s + item.due_s)

    return await asyncio.gather(*map(due, work))


async def ask(target: Target, work: BenchRequest, start_s: float) -> RequestTiming:
    """One request from its start to its end. What goes wrong is part of the record."""
    record = RequestTiming(start_s)
    try:
        async with request(target.endpoint, "POST", _PATHS[target.api], target.body(work)) as reply:
            await _read(reply, record)
    except (OSError, HttpError) as error:
        record.error = str(error) or type(error).__name__
    record.end_s = time.perf_counter()
    return record


async def _read(reply: Reply, record: RequestTiming) -> None:
    if reply.status != 200:
        raise HttpError(f"HTTP {reply.status}: {_message(await reply.body())}")
    is_done = False
    rest = b""
    async for part in reply.parts():
        now_s = time.perf_counter()
        *events, rest = (rest + part).split(b"\n\n")
        for event in events:
            is_done = _take(event, record, now_s) or is_done
    if not is_done:
        raise HttpError("the stream ended without [DONE]")


def _take(event: bytes, record: RequestTiming, now_s: float) -> bool:
    """True for the stream's end. Raises HttpError for an error event."""
    payload = event.removeprefix(b"data: ")
    if payload == _DONE or not event.startswith(b"data: "):
        return payload == _DONE
    chunk = _object(payload)
    if "error" in chunk:
        raise HttpError(_message(payload))
    if usage := chunk.get("usage"):
        record.prompt_tokens, record.output_tokens = usage["prompt_tokens"], usage["completion_tokens"]
    if any(map(_has_text, chunk.get("choices") or ())):
        record.chunk_s.append(now_s)
    return False


def _has_text(choice: dict[str, Any]) -> bool:
    return bool(choice.get("text") or (choice.get("delta") or {}).get("content"))


def _object(payload: bytes) -> dict[str, Any]:
    try:
        value = orjson.loads(payload)
    except orjson.JSONDecodeError:
        raise HttpError("an event is not JSON") from None
    if not isinstance(value, dict):
        raise HttpError("an event is no JSON object")
    return value


def _message(body: bytes) -> str:
    """What an error's body says, in one line."""
    try:
        error = orjson.loads(body)["error"]
        return str(error["message"] if isinstance(error, dict) else error)
    except (orjson.JSONDecodeError, KeyError, TypeError):
        return body[:200].decode(errors="replace")


async def first_model(endpoint: Endpoint) -> str:
    """The id that /v1/models names first. Raises HttpError and OSError."""
    async with request(endpoint, "GET", "/v1/models") as reply:
        body = await reply.body()
    if reply.status != 200:
        raise HttpError(f"/v1/models: HTTP {reply.status}: {_message(body)}")
    try:
        return str(orjson.loads(body)["data"][0]["id"])
    except (orjson.JSONDecodeError, LookupError, TypeError):
        raise HttpError("/v1/models names no model: give --model") from None
