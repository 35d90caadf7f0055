"""Endpoints that translate to chat: their request becomes a chat request, and the chat's choices become their reply."""

import re
import time
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping, Sequence
from contextlib import aclosing, contextmanager
from dataclasses import replace

from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from server.api.chat_turn import ChatTurn, RenderedChat, prepare_rendered, render_chat
from server.api.formats.event_reply import Event, EventReply
from server.api.formats.json_pieces import Default, in_pieces
from server.api.formats.reply import chunks_in_turns, render_logprobs
from server.errors import ApiError
from server.generation.choice import Delta, merge_deltas
from server.generation.state import state_of, tenant_of
from server.http.disconnect import unless_disconnected
from server.http.sliced_response import SEND_BYTES, SlicedResponse
from server.http.sse import KEEP_ALIVE_S, EventFormat, EventStream, LongPayload, named_event
from server.schemas import ChatCompletionRequest, CountTokensRequest, TranslatedRequest, validate

Encode = Callable[[Event, Default], bytes]  # returns an event's payload; the second argument is orjson's `default`

_TOOL = re.compile(r"tools\[(\d+)\]")
_QUOTED = re.compile(r"'([^' ]+)'")


async def to_chat_request(
    http: HttpRequest,
    request: TranslatedRequest | CountTokensRequest,
    renamed: Mapping[str, str],
    chat_class: type[ChatCompletionRequest] = ChatCompletionRequest,
) -> ChatCompletionRequest:
    """Return the chat request of a translated one. Raises ApiError 400 with this endpoint's field names (`renamed`)."""
    size = len(await http.body())
    with renaming(renamed, request.tool_paths):
        return await state_of(http).heavy_work.run(
            lambda: validate(chat_class, request.chat_body()), size=size, tenant=tenant_of(http)
        )


async def prepare_translated(
    http: HttpRequest, request: TranslatedRequest, arrival_s: float, renamed: Mapping[str, str]
) -> ChatTurn:
    """Return the request as a chat that is ready to be generated. Raises ApiError with this endpoint's field names."""
    return await prepare_translation(http, request, await render_translated(http, request, arrival_s, renamed), renamed)


async def render_translated(
    http: HttpRequest, request: TranslatedRequest, arrival_s: float, renamed: Mapping[str, str]
) -> RenderedChat:
    """Return the request as a chat whose prompt is known. Raises ApiError with this endpoint's field names."""
    chat = await to_chat_request(http, request, renamed, request.chat_class)
    with renaming(renamed, request.tool_paths):
        return await render_chat(http, chat, arrival_s)


async def prepare_translation(
    http: HttpRequest, request: TranslatedRequest, chat: RenderedChat, renamed: Mapping[str, str]
) -> ChatTurn:
    """Return a rendered chat ready to be generated. Raises ApiError with the field names of `request`'s endpoint."""
    with renaming(renamed, request.tool_paths):
        turn = await prepare_rendered(http, chat)
    return replace(turn, ignored=[_renamed(path, renamed, request.tool_paths) for path in turn.ignored])


@contextmanager
def renaming(names: Mapping[str, str], tool_paths: Sequence[str] = ()) -> Iterator[None]:
    """Replace chat's field names by another endpoint's in the errors that leave this block.

    `names`: patterns of chat's paths, and the endpoint's name for each. If a field is translated piece by piece, a path
    into the translation does not exist in the client's request, and its name is that of the field alone. `tool_paths`:
    where each tool of the chat stands in the client's request; empty if in the same place.
    """
    try:
        yield
    except ApiError as error:
        error.param = error.param and _renamed(error.param, names, tool_paths)
        error.message = _QUOTED.sub(lambda quoted: f"'{_renamed(quoted[1], names, tool_paths)}'", error.message)
        raise


def _renamed(path: str, names: Mapping[str, str], tool_paths: Sequence[str]) -> str:
    matches = ((re.fullmatch(pattern, path), name) for pattern, name in names.items())
    renamed = next((match.expand(name) for match, name in matches if match), path)
    tool = _TOOL.match(renamed)
    if tool is None or int(tool[1]) >= len(tool_paths):
        return renamed
    return tool_paths[int(tool[1])] + renamed[tool.end() :]


def stream(
    turn: ChatTurn,
    reply: EventReply,
    headers: dict[str, str],
    event_format: EventFormat,
    encode: Encode = named_event,
    clock: Callable[[], float] = time.monotonic,
) -> Response:
    """Return the reply as a stream of events, each encoded by `encode`."""
    return EventStream(_events(turn, reply, encode, clock), turn.add_to_headers(headers), event_format)


async def complete(http: HttpRequest, turn: ChatTurn, reply: EventReply) -> None:
    """Generate all of the chat into `reply`. Raises ClientDisconnected if the client leaves before the end."""
    await unless_disconnected(http.receive, _feed(turn, reply))


def json_response(body: Mapping[str, object], turn: ChatTurn, headers: dict[str, str]) -> Response:
    """Return a full reply."""
    return SlicedResponse(in_pieces(body), turn.add_to_headers(headers), media_type="application/json")


async def _events(
    turn: ChatTurn, reply: EventReply, encode: Encode, clock: Callable[[], float]
) -> AsyncGenerator[list[bytes], None]:
    """Yield what to write. Output may give no events for long, such as a call that is sent whole: that is idle, too."""
    has_begun, written_s = False, clock()
    async with aclosing(turn.generation.deltas(KEEP_ALIVE_S)) as batches:
        async for deltas in batches:
            events: list[Event] = []
            if deltas and not has_begun:
                has_begun = True
                events += reply.begin(turn.generation.usage())
            for choice, _ in await chunks_in_turns(deltas, turn.reply_format, turn.generation):
                events += reply.chunk(choice)
            is_idle = not events and (not deltas or clock() - written_s >= KEEP_ALIVE_S)
            if events or is_idle:
                for batch in _batches(reply.idle() if is_idle else events, encode):
                    yield batch
                written_s = clock()
    for batch in _batches(reply.end(turn.generation.final_usage()), encode):
        yield batch


def _batches(events: Sequence[Event], encode: Encode) -> Iterator[list[bytes]]:
    """Yield the events' payloads in batches to write. One that is long is a batch of its own, made when it is sent."""
    short: list[bytes] = []
    for event in events:
        pieces = in_pieces(event, encode)
        if len(pieces) == 1 or sum(map(len, pieces)) <= SEND_BYTES:
            short.append(b"".join(pieces))
            continue
        if short:
            yield short
            short = []
        yield LongPayload(pieces)
    if short or not events:
        yield short


async def _feed(turn: ChatTurn, reply: EventReply) -> None:
    everything: list[Delta] = []
    async with aclosing(turn.generation.deltas(KEEP_ALIVE_S)) as batches:
        async for deltas in batches:
            if deltas and not everything:
                reply.begin(turn.generation.usage())
            everything += deltas
    delta = merge_deltas(everything)
    everything.clear()
    await render_logprobs([delta], turn.reply_format, turn.generation)
    reply.chunk(turn.reply_format.full(delta))
    reply.end(turn.generation.final_usage())
