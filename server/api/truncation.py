"""Shorten a conversation from its beginning until it fits the context: `"truncation": "auto"` of Responses, and
`"truncate": true` of Ollama's chat."""

from collections.abc import Mapping
from dataclasses import replace

from starlette.requests import Request as HttpRequest

from server.api.chat_translation import prepare_translated, prepare_translation, render_translated
from server.api.chat_turn import REPAIRED_HEADER, ChatTurn, RenderedChat
from server.errors import CONTEXT_LENGTH_EXCEEDED, ApiError
from server.schemas.translated import TranslatedRequest, TruncatableRequest

CUT = "dropped-oldest-turns"  # among the repairs of the conversation


async def prepare_truncated(
    http: HttpRequest, request: TranslatedRequest, arrival_s: float, renamed: Mapping[str, str]
) -> ChatTurn:
    """Return the request as a chat that is ready to be generated; if it may be cut, without as few of its oldest turns
    as possible.

    Turns begin with messages of the user. System and developer messages stay, and so does the last turn: if it alone is
    too long, this raises ApiError 400. Renders the conversation once for each halving of the number of turns; its
    generation is built once.
    """
    if not isinstance(request, TruncatableRequest) or not request.may_be_cut:
        return await prepare_translated(http, request, arrival_s, renamed)
    chat = await _longest_fitting(http, request, arrival_s, renamed)
    return await prepare_translation(http, request, chat, renamed)


async def _longest_fitting(
    http: HttpRequest, request: TruncatableRequest, arrival_s: float, renamed: Mapping[str, str]
) -> RenderedChat:
    """Return the chat without as few turns as possible, and with the header that says so. Raises ApiError."""
    starts = request.turn_starts()
    if whole := await _fitting(http, request, arrival_s, renamed, is_last=len(starts) < 2):
        return whole
    lowest, highest = 1, len(starts) - 1  # the first turn that is kept
    found: RenderedChat | None = None
    while lowest < highest or found is None:
        middle = (lowest + highest) // 2
        shorter = request.without_turns(starts[middle])
        fitting = await _fitting(http, shorter, arrival_s, renamed, is_last=middle == len(starts) - 1)
        if fitting is None:
            lowest = middle + 1
        else:
            found, highest = fitting, middle
    names = [*filter(None, [found.repair_headers.get(REPAIRED_HEADER)]), CUT]
    return replace(found, repair_headers={REPAIRED_HEADER: ", ".join(names)})


async def _fitting(
    http: HttpRequest, request: TruncatableRequest, arrival_s: float, renamed: Mapping[str, str], *, is_last: bool
) -> RenderedChat | None:
    """Return the request as a chat, or None if it is too long or leaves too little room for the reply. The last one
    that can be tried raises its error, and takes what room there is."""
    try:
        chat = await render_translated(http, request, arrival_s, renamed)
    except ApiError as error:
        if is_last or error.code != CONTEXT_LENGTH_EXCEEDED:
            raise
        return None
    return chat if is_last or chat.max_tokens >= request.least_room(chat.max_model_len) else None
