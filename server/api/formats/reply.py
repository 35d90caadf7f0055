"""A generation as an HTTP reply: the envelope that all its parts share, and the two ways to send them."""

import time
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from typing import Protocol

import orjson
from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from engine.messages import Ready
from server.generation.choice import Delta, merge_deltas
from server.generation.generation import Generation
from server.http.disconnect import unless_disconnected
from server.http.sse import KEEP_ALIVE_S, EventStream
from server.schemas import GenerationRequest, StreamOptions


class Envelope:
    """What every chunk of a stream, or the whole reply, has around its choices."""

    def __init__(self, fields: Mapping[str, str | int]) -> None:
        self._fields = dict(fields)
        self._prefix = orjson.dumps(self._fields)[:-1]

    def chunk(self, choices: list[Mapping[str, object]], more: Mapping[str, object]) -> bytes:
        """One chunk's JSON. The fields that never change were rendered once."""
        return self._prefix + b"," + orjson.dumps({"choices": choices, **more})[1:]

    def whole(self, choices: list[Mapping[str, object]], more: Mapping[str, object]) -> bytes:
        """The whole reply's JSON."""
        return orjson.dumps({**self._fields, "choices": choices, **more})


class TextChunks:
    """The chunks of deltas that are only text, which is most of a stream: each choice's is rendered once, and cut where
    the text stands."""

    MARK = "\0"  # stands in no id, no name and no fingerprint

    def __init__(self, layout: "ReplyFormat", envelope: Envelope, more: Mapping[str, object]) -> None:
        """`more`: what every chunk has beside its choices."""
        self._layout = layout
        self._envelope = envelope
        self._more = more
        self._pieces: dict[int, tuple[bytes, bytes]] = {}  # by choice

    def chunk(self, delta: Delta) -> bytes:
        """One chunk's JSON, equal to what Envelope.chunk gives."""
        before, after = self._pieces.get(delta.index) or self._cut(delta.index)
        return before + orjson.dumps(delta.text) + after

    def _cut(self, index: int) -> tuple[bytes, bytes]:
        [(choice, beside)] = self._layout.chunks(Delta(index, text=self.MARK))
        before, _, after = self._envelope.chunk([choice], {**beside, **self._more}).partition(orjson.dumps(self.MARK))
        self._pieces[index] = before, after
        return before, after


def common_fields(prefix: str, http_id: str, model: str, ready: Ready, seed: int) -> dict[str, str | int]:
    """What all parts of a reply carry: the same id, time, model, numerics and seed."""
    return {
        "id": f"{prefix}-{http_id}",
        "created": int(time.time()),
        "model": model,
        "system_fingerprint": ready.fingerprint,
        "seed": seed,
    }


class ReplyFormat(Protocol):
    """One endpoint's shape of a choice."""

    stream_object: str
    whole_object: str
    text_only_stream: bool  # what is only text makes one chunk, in which nothing but the text differs

    def chunks(self, delta: Delta) -> list[tuple[Mapping[str, object], Mapping[str, object]]]:
        """The chunks that tell a delta: each one's choice, and its fields beside `choices`."""
        ...

    def whole(self, delta: Delta) -> Mapping[str, object]:
        """A choice with everything in it."""
        ...

    def extra_fields(self) -> Mapping[str, object]:
        """The whole reply's fields beside `choices`."""
        ...


async def respond(
    http: HttpRequest,
    request: GenerationRequest,
    generation: Generation,
    layout: ReplyFormat,
    fields: Mapping[str, str | int],
    headers: Mapping[str, str],
) -> Response:
    """The reply as the request wants it. A whole one is complete when this returns, a stream has not begun."""
    if request.stream:
        envelope = Envelope({**fields, "object": layout.stream_object})
        options = request.stream_options or StreamOptions()
        return EventStream(_stream(generation, layout, envelope, options, request.expert_usage), headers)
    envelope = Envelope({**fields, "object": layout.whole_object})
    body = await unless_disconnected(http.receive, _whole(generation, layout, envelope))
    return Response(body, headers=dict(headers), media_type="application/json")


async def _stream(
    generation: Generation, layout: ReplyFormat, envelope: Envelope, options: StreamOptions, expert_usage: bool
) -> AsyncGenerator[list[bytes], None]:
    usage_per_chunk = options.continuous_usage_stats
    no_usage: Mapping[str, object] = {"usage": None} if options.include_usage else {}
    texts = TextChunks(layout, envelope, no_usage) if layout.text_only_stream and not usage_per_chunk else None
    async with aclosing(generation.deltas(KEEP_ALIVE_S)) as batches:
        async for deltas in batches:
            if texts is not None and all(delta.is_text_alone for delta in deltas):
                yield list(map(texts.chunk, deltas))
                continue
            more = {"usage": generation.usage()} if usage_per_chunk else no_usage
            chunks = [chunk for delta in deltas for chunk in layout.chunks(delta)]
            if chunks or not deltas:
                yield [envelope.chunk([choice], {**beside, **more}) for choice, beside in chunks]
    if options.include_usage or expert_usage:
        yield [envelope.chunk([], {"usage": generation.final_usage()})]


async def _whole(generation: Generation, layout: ReplyFormat, envelope: Envelope) -> bytes:
    deltas_of: list[list[Delta]] = [[] for _ in range(generation.num_choices)]
    async with aclosing(generation.deltas(KEEP_ALIVE_S)) as batches:
        async for deltas in batches:
            for delta in deltas:
                deltas_of[delta.index].append(delta)
    choices = [layout.whole(merge_deltas(deltas)) for deltas in deltas_of]
    return envelope.whole(choices, {**layout.extra_fields(), "usage": generation.final_usage()})
