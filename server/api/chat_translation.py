"""Endpoints that are translations of chat: the request becomes a chat's, the reply is made of the chat's choices."""

import re
from collections.abc import AsyncGenerator, Iterator, Mapping
from contextlib import aclosing, contextmanager
from dataclasses import replace

import orjson
from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from server.api.chat_turn import ChatTurn, prepare_chat
from server.api.formats.event_reply import Event, TypedReply
from server.errors import ApiError
from server.event_loop import INLINE_CHARS, off_loop
from server.generation.choice import Delta, merge_deltas
from server.http.disconnect import unless_disconnected
from server.http.sse import KEEP_ALIVE_S, EventFormat, EventStream, named
from server.schemas import ChatCompletionRequest, CountTokensRequest, TranslatedRequest, validate

_QUOTED = re.compile(r"'([^' ]+)'")


async def chat_of(
    http: HttpRequest, request: TranslatedRequest | CountTokensRequest, renamed: Mapping[str, str]
) -> ChatCompletionRequest:
    """The chat of a translated request. Raises ApiError 400, which calls fields as this endpoint does (`renamed`)."""
    heavy = len(await http.body()) > INLINE_CHARS
    with renaming(renamed):
        return await off_loop(lambda: validate(ChatCompletionRequest, request.chat_body()), heavy=heavy)


async def chat_turn(
    http: HttpRequest, request: TranslatedRequest, arrival_s: float, renamed: Mapping[str, str]
) -> ChatTurn:
    """The request as a chat that is ready to be generated. Raises ApiError, as `chat_of` does."""
    chat = await chat_of(http, request, renamed)
    with renaming(renamed):
        turn = await prepare_chat(http, chat, arrival_s)
    return replace(turn, ignored=[_renamed(path, renamed) for path in turn.ignored])


@contextmanager
def renaming(names: Mapping[str, str]) -> Iterator[None]:
    """Errors that leave this block name fields as another endpoint calls them.

    `names`: patterns of chat's paths, and what each is there. A path into what was translated piece by piece is no path
    into what the client sent, so that the field's name has to do.
    """
    try:
        yield
    except ApiError as error:
        error.param = error.param and _renamed(error.param, names)
        error.message = _QUOTED.sub(lambda quoted: f"'{_renamed(quoted[1], names)}'", error.message)
        raise


def _renamed(path: str, names: Mapping[str, str]) -> str:
    matches = ((re.fullmatch(pattern, path), name) for pattern, name in names.items())
    return next((match.expand(name) for match, name in matches if match), path)


def stream(turn: ChatTurn, reply: TypedReply, headers: dict[str, str], dialect: EventFormat) -> Response:
    """The reply as events."""
    return EventStream(_events(turn, reply), turn.headers_beside(headers), dialect)


async def whole(http: HttpRequest, turn: ChatTurn, reply: TypedReply) -> None:
    """Feeds `reply` everything, unless the client goes first."""
    await unless_disconnected(http.receive, _feed(turn, reply))


def json_response(body: Mapping[str, object], turn: ChatTurn, headers: dict[str, str]) -> Response:
    """A reply in one piece."""
    return Response(orjson.dumps(body), headers=turn.headers_beside(headers), media_type="application/json")


async def _events(turn: ChatTurn, reply: TypedReply) -> AsyncGenerator[list[bytes], None]:
    has_begun = False
    async with aclosing(turn.generation.deltas(KEEP_ALIVE_S)) as batches:
        async for deltas in batches:
            events: list[Event] = []
            if deltas and not has_begun:
                has_begun = True
                events += reply.begin(turn.generation.usage())
            for delta in deltas:
                for choice, _ in turn.layout.chunks(delta):
                    events += reply.chunk(choice)
            if events or not deltas:
                yield list(map(named, events))
    yield list(map(named, reply.end(turn.generation.final_usage())))


async def _feed(turn: ChatTurn, reply: TypedReply) -> None:
    everything: list[Delta] = []
    async with aclosing(turn.generation.deltas(KEEP_ALIVE_S)) as batches:
        async for deltas in batches:
            everything += deltas
    reply.begin(turn.generation.usage())
    reply.chunk(turn.layout.whole(merge_deltas(everything)))
    reply.end(turn.generation.final_usage())
