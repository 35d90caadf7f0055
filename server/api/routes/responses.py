"""POST /v1/responses: OpenAI's Responses, translated to chat."""

import time

from fastapi import APIRouter
from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from server.api.chat_translation import complete, json_response, stream
from server.api.formats.openai_responses import ResponsesReply
from server.api.formats.reply import reserve_memory
from server.api.openapi import response_schemas
from server.api.openapi.operations import GENERATION, describe
from server.api.request_body import read_request
from server.api.truncation import prepare_truncated
from server.errors import ApiError
from server.generation.state import state_of, tenant_of
from server.http.sse import EventFormat, named_event
from server.schemas import ResponsesRequest

RENAMED = {
    r"max_completion_tokens": "max_output_tokens",
    r"messages\b.*": "input",
    r"response_format\b.*": "text.format",
    r"(tools\[\d+\])\.function\.(.*)": r"\1.\2",
    r"tool_choice\.function\.name": "tool_choice.name",
}

router = APIRouter()


@router.post(
    "/v1/responses",
    **describe(
        "Create a response: OpenAI's Responses, translated to chat.",
        response_schemas.RESPONSE,
        request=ResponsesRequest,
        statuses=GENERATION,
        is_streamed=True,
    ),
)
async def responses(http: HttpRequest) -> Response:
    """Reply with a list of items: a message, or function calls."""
    arrival_s = time.monotonic()
    await state_of(http).check_queue(tenant_of(http))
    request, headers = await read_request(http, ResponsesRequest)
    turn = await prepare_truncated(http, request, arrival_s, RENAMED)
    # repeated log probabilities share theirs
    reserve_memory(http, turn.generation.reply_bytes, turn.generation.num_choices)
    reply = ResponsesReply(
        f"resp_{http.state.request_id}", int(turn.fields["created"]), request, str(turn.fields["model"])
    )
    if request.stream:
        return stream(turn, reply, headers, EventFormat(b"", b"", lambda error: _error_event(reply, error)))
    await complete(http, turn, reply)
    return json_response(reply.response, turn, headers)


def _error_event(reply: ResponsesReply, error: ApiError) -> bytes:
    return named_event(reply.error(error.body()["error"]))
