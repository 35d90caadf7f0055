"""Shorten a response's conversation from its beginning until it fits the context: `"truncation": "auto"`."""

from collections.abc import Mapping

from starlette.requests import Request as HttpRequest

from server.api.chat_translation import prepare_translated
from server.api.chat_turn import ChatTurn
from server.errors import CONTEXT_LENGTH_EXCEEDED, ApiError
from server.schemas import ResponsesRequest
from server.schemas.responses_api.items import MessageItem


async def prepare_truncated(
    http: HttpRequest, request: ResponsesRequest, arrival_s: float, renamed: Mapping[str, str]
) -> ChatTurn:
    """Return the response as a chat that is ready to be generated, without as few of its oldest turns as possible.

    Turns begin with messages of the user. System and developer messages stay, and so does the last turn: if it alone is
    too long, this raises ApiError 400. Renders the conversation once for each halving of the number of turns.
    """
    try:
        return await prepare_translated(http, request, arrival_s, renamed)
    except ApiError as error:
        starts = turn_starts(request)
        if request.truncation != "auto" or error.code != CONTEXT_LENGTH_EXCEEDED or len(starts) < 2:
            raise
    lowest, highest = 1, len(starts) - 1  # the first turn that is kept
    fitting: ChatTurn | None = None
    while lowest < highest or fitting is None:
        middle = (lowest + highest) // 2
        try:
            fitting = await prepare_translated(http, without_turns(request, starts[middle]), arrival_s, renamed)
            highest = middle
        except ApiError as error:
            if error.code != CONTEXT_LENGTH_EXCEEDED or middle == len(starts) - 1:
                raise
            lowest = middle + 1
    return fitting


def turn_starts(request: ResponsesRequest) -> list[int]:
    """Return the positions of the user's messages in the input."""
    return [i for i, item in enumerate(request.input) if isinstance(item, MessageItem) and item.role == "user"]


def without_turns(request: ResponsesRequest, start: int) -> ResponsesRequest:
    """Return the request without what comes before position `start`, except system and developer messages."""
    kept = [
        item for item in request.input[:start] if isinstance(item, MessageItem) and item.role in ("system", "developer")
    ]
    return request.model_copy(update={"input": [*kept, *request.input[start:]]})
