"""POST /v1/chat/completions: generate the next message of a conversation."""

import time

from fastapi import APIRouter
from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from server.api.chat_turn import prepare_chat
from server.api.formats.reply import respond
from server.api.openapi import response_schemas
from server.api.openapi.operations import GENERATION, describe
from server.api.request_body import read_request
from server.generation.state import state_of, tenant_of
from server.schemas import ChatCompletionRequest

router = APIRouter()


@router.post(
    "/v1/chat/completions",
    **describe(
        "Generate the next message of a conversation.",
        response_schemas.CHAT,
        request=ChatCompletionRequest,
        statuses=GENERATION,
        is_streamed=True,
    ),
)
async def chat_completions(http: HttpRequest) -> Response:
    """Reply with a message per choice."""
    arrival_s = time.monotonic()
    await state_of(http).check_queue(tenant_of(http))
    request, headers = await read_request(http, ChatCompletionRequest)
    turn = await prepare_chat(http, request, arrival_s)
    return await respond(http, request, turn.generation, turn.reply_format, turn.fields, turn.add_to_headers(headers))
