"""A generation as an HTTP reply: the envelope that all parts of a reply share, and the two ways to send them."""

import time
from collections.abc import AsyncGenerator, Iterable, Mapping, Sequence
from contextlib import aclosing
from typing import Protocol

import orjson
from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from server.api.formats.json_pieces import in_pieces, joined
from server.api.formats.logprobs import TokenTexts
from server.api.formats.prompt_logprobs import prompt_logprobs
from server.api.formats.sliced_logprobs import VALUES_PER_TURN, Logprobs, num_logprob_values, sliced_logprobs
from server.errors import reply_memory_full
from server.fairness.request_memory import Lease
from server.generation.choice import Delta, Position, merge_deltas
from server.generation.generation import Generation
from server.generation.state import state_of
from server.http.disconnect import unless_disconnected
from server.http.sliced_response import SlicedResponse
from server.http.sse import KEEP_ALIVE_S, EventStream
from server.schemas import GenerationRequest, StreamOptions

INLINE_VALUES = 64  # log probabilities that a stream renders without a turn: about 20 us
GATE_BYTES_PER_VALUE = 8  # bytes of gate logits that take as long to render as a log probability
VALUES_OF_A_CHOICE = 64  # a choice takes as long to render as this many log probabilities

Chunk = tuple[Mapping[str, object], Mapping[str, object]]  # a choice, and the fields outside `choices`


class ReplyFormat(Protocol):
    """The format of choices at one endpoint."""

    stream_object: str  # value of `object` in chunks
    full_object: str  # value of `object` in a full reply
    text_only_stream: bool  # a delta with only text makes one chunk, and such chunks differ only in the text

    def chunks(self, delta: Delta) -> list[Chunk]:
        """Return the chunks of a delta: of each its choice, and its fields outside `choices`."""
        ...

    def full(self, delta: Delta) -> Mapping[str, object]:
        """Return a complete choice."""
        ...

    @property
    def texts(self) -> TokenTexts:
        """Texts of the tokens."""
        ...

    @property
    def num_prompt_logprobs(self) -> int | None:
        """Number of likeliest tokens to list for each token of the prompt; None for no such list."""
        ...

    def logprobs(self, positions: Sequence[Position]) -> Logprobs | None:
        """Return the logprobs of these positions; None if the reply has none."""
        ...

    def extra_fields(self) -> Mapping[str, object]:
        """Return the fields of a full reply outside `choices`."""
        ...


class Envelope:
    """The fields around the choices, which are the same in every chunk of a stream."""

    def __init__(self, fields: Mapping[str, str | int]) -> None:
        self._fields = dict(fields)
        self._prefix = orjson.dumps(self._fields)[:-1]

    def chunk(self, choices: list[Mapping[str, object]], more: Mapping[str, object]) -> bytes:
        """Return one chunk's JSON. The constant fields are rendered once."""
        return self._prefix + b"," + orjson.dumps({"choices": choices, **more}, joined)[1:]

    def full(self, choices: Iterable[Sequence[bytes]], more: Mapping[str, object]) -> list[bytes]:
        """Return a full reply's JSON in pieces. `choices`: those of each; `more`: other fields, at least one."""
        pieces = [self._prefix + b',"choices":[']
        for choice in choices:
            pieces += [*choice, b","]
        if len(pieces) > 1:
            pieces.pop()
        return [*pieces, b"]," + orjson.dumps(more)[1:]]


class TextChunks:
    """Chunks of deltas that have only text, which are most of a stream.

    Each choice's chunk is rendered once and cut at the place of the text.
    """

    MARK = "\0"  # occurs in no id, model name or fingerprint

    def __init__(self, reply_format: ReplyFormat, envelope: Envelope, more: Mapping[str, object]) -> None:
        """`more`: fields of every chunk outside `choices`."""
        self._reply_format = reply_format
        self._envelope = envelope
        self._more = more
        self._pieces: dict[int, tuple[bytes, bytes]] = {}  # by choice

    def chunk(self, delta: Delta) -> bytes:
        """Return one chunk's JSON, byte for byte that of Envelope.chunk."""
        before, after = self._pieces.get(delta.index) or self._cut(delta.index)
        return before + orjson.dumps(delta.text) + after

    def _cut(self, index: int) -> tuple[bytes, bytes]:
        [(choice, extra)] = self._reply_format.chunks(Delta(index, text=self.MARK))
        before, _, after = self._envelope.chunk([choice], {**extra, **self._more}).partition(orjson.dumps(self.MARK))
        self._pieces[index] = before, after
        return before, after


def common_fields(prefix: str, generation: Generation, model: str, fingerprint: str) -> dict[str, str | int]:
    """Return the envelope's fields: the same id, time, model, numerics and seed in all parts of a reply."""
    return {
        "id": f"{prefix}-{generation.http_id}",
        "created": int(time.time()),
        "model": model,
        "system_fingerprint": fingerprint,
        "seed": generation.seed,
    }


async def respond(
    http: HttpRequest,
    request: GenerationRequest,
    generation: Generation,
    reply_format: ReplyFormat,
    fields: Mapping[str, str | int],
    headers: Mapping[str, str],
) -> Response:
    """Return the full reply after generating it, or with `stream` a stream before its first token.

    Raises ApiError 429 while large replies use up their memory.
    """
    reserve_memory(http, generation.reply_bytes, generation.num_choices)
    if request.stream:
        envelope = Envelope({**fields, "object": reply_format.stream_object})
        options = request.stream_options or StreamOptions()
        return EventStream(_stream(generation, reply_format, envelope, options, request.expert_usage), headers)
    envelope = Envelope({**fields, "object": reply_format.full_object})
    pieces = await unless_disconnected(http.receive, _full(generation, reply_format, envelope))
    return SlicedResponse(pieces, headers, media_type="application/json")


def reserve_memory(http: HttpRequest, num_bytes: int, num_choices: int) -> None:
    """Reserve memory for the reply, which has so many choices, until the request has ended. Raises ApiError 429."""
    state = state_of(http)
    lease: Lease | None = getattr(http.state, "lease", None)
    if not num_bytes or lease is None:
        return
    if not state.reply_memory.try_take(lease.tenant, num_bytes):
        state.metrics.rejected(num_choices)
        raise reply_memory_full(state.admission.retry_after_s(1))
    lease.on_close(lambda: state.reply_memory.give_back(lease.tenant, num_bytes))


async def _stream(
    generation: Generation, reply_format: ReplyFormat, envelope: Envelope, options: StreamOptions, expert_usage: bool
) -> AsyncGenerator[list[bytes], None]:
    usage_per_chunk = options.continuous_usage_stats and options.include_usage is not False
    no_usage: Mapping[str, object] = {"usage": None} if options.include_usage else {}
    texts = (
        TextChunks(reply_format, envelope, no_usage) if reply_format.text_only_stream and not usage_per_chunk else None
    )
    before = more = no_usage
    num_before = 0  # completion tokens of earlier chunks
    async with aclosing(generation.deltas(KEEP_ALIVE_S)) as batches:
        async for deltas in batches:
            if texts is not None and all(delta.is_text_only for delta in deltas):
                yield list(map(texts.chunk, deltas))
                continue
            if usage_per_chunk:
                before, more = ({"usage": generation.usage(number)} for number in (num_before, None))
                num_before = generation.num_completion
            chunks = await chunks_in_turns(deltas, reply_format, generation)
            if chunks or not deltas:
                yield [
                    envelope.chunk([choice], {**extra, **(before if _has_role(choice) else more)})
                    for choice, extra in chunks
                ]
    if options.include_usage or expert_usage:
        yield [envelope.chunk([], {"usage": generation.final_usage()})]


def _has_role(choice: Mapping[str, object]) -> bool:
    """Return whether this is the chunk of a chat that comes before the first token, and so does not count it."""
    delta = choice.get("delta")
    return isinstance(delta, Mapping) and "role" in delta


async def chunks_in_turns(deltas: Sequence[Delta], reply_format: ReplyFormat, generation: Generation) -> list[Chunk]:
    """Return the chunks of deltas. Many log probabilities are rendered in turns of the event loop, so that the streams
    of one tenant do not render those of a step all at once."""
    takes_turns = sum(map(_num_values, deltas)) > INLINE_VALUES
    chunks: list[Chunk] = []
    num_values = VALUES_PER_TURN  # rendered since the last turn
    for delta in deltas:
        if takes_turns and num_values >= VALUES_PER_TURN:
            await generation.next_turn()
            num_values = 0
        await render_logprobs([delta], reply_format, generation)
        chunks += reply_format.chunks(delta)
        num_values += _num_values(delta)
    return chunks


def _num_values(delta: Delta) -> int:
    """Return how long a delta's numbers take to render, in log probabilities; a gate logit takes half of one."""
    return num_logprob_values(delta.positions) + sum(map(len, delta.gates)) // GATE_BYTES_PER_VALUE


async def render_logprobs(deltas: Iterable[Delta], reply_format: ReplyFormat, generation: Generation) -> None:
    """Render the logprobs of deltas with many positions ahead."""
    for delta in deltas:
        if num_logprob_values(delta.positions) > VALUES_PER_TURN:
            delta.rendered_logprobs = await sliced_logprobs(
                delta.positions, reply_format.logprobs, generation.next_turn
            )


async def _full(generation: Generation, reply_format: ReplyFormat, envelope: Envelope) -> list[bytes]:
    deltas_of: list[list[Delta]] = [[] for _ in range(generation.num_choices)]
    async with aclosing(generation.deltas(KEEP_ALIVE_S)) as batches:
        async for deltas in batches:
            for delta in deltas:
                deltas_of[delta.index].append(delta)
    choices: list[list[bytes]] = []
    num_values = 0  # rendered in this turn
    num_numbers = 0  # rendered so far; more than a few wait for a turn, as many replies may end in one step
    for deltas in deltas_of:
        delta = merge_deltas(deltas)
        deltas.clear()
        numbers = _num_values(delta)
        if num_values >= VALUES_PER_TURN or num_numbers <= INLINE_VALUES < num_numbers + numbers:
            await generation.next_turn()
            num_values = 0
        num_numbers += numbers
        await render_logprobs([delta], reply_format, generation)
        if (num_top := reply_format.num_prompt_logprobs) is not None:
            delta.rendered_prompt_logprobs = await prompt_logprobs(
                delta.prompt_logprobs or [], num_top, reply_format.texts, generation.next_turn
            )
        choices.append(in_pieces(reply_format.full(delta)))
        num_values += VALUES_OF_A_CHOICE + numbers
    return envelope.full(choices, {**reply_format.extra_fields(), "usage": generation.final_usage()})
