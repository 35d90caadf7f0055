"""POST /v1/messages and /v1/messages/count_tokens: Anthropic's Messages, translated to chat."""

import time

from fastapi import APIRouter
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response

from server.api.chat_translation import complete, json_response, prepare_translated, renaming, stream, to_chat_request
from server.api.chat_turn import render_prompt
from server.api.formats.anthropic_messages import MessagesReply
from server.api.formats.reply import reserve_memory
from server.api.openapi import response_schemas
from server.api.openapi.operations import GENERATION, WITH_BODY, describe
from server.api.request_body import read_request
from server.errors import anthropic_error
from server.generation.jobs import CHECKED_BYTES_PER_CHAR
from server.generation.prompt import check_prompt_chars
from server.generation.state import state_of, tenant_of
from server.http.sse import EventFormat, named_event
from server.schemas import CountTokensRequest, MessagesRequest
from server.tools.constraints import resolve_tool_use

RENAMED = {
    r"stop": "stop_sequences",
    r"user": "metadata.user_id",
    r"messages\b.*|continue_final_message": "messages",
    r"(tools\[\d+\])\.function\.parameters(.*)": r"\1.input_schema\2",
    r"(tools\[\d+\])\.function\.(.*)": r"\1.\2",
    r"tool_choice\.function\.name": "tool_choice.name",
    r"response_format\b.*": "output_config.format",
}
ANTHROPIC = EventFormat(b"", b"", lambda error: named_event(anthropic_error(error)))

router = APIRouter()


@router.post(
    "/v1/messages",
    **describe(
        "Create a message: Anthropic's Messages, translated to chat.",
        response_schemas.MESSAGE,
        request=MessagesRequest,
        statuses=GENERATION,
        is_streamed=True,
        error="AnthropicError",
    ),
)
async def messages(http: HttpRequest) -> Response:
    """Reply with a message of content blocks."""
    arrival_s = time.monotonic()
    await state_of(http).check_queue(tenant_of(http))
    request, headers = await read_request(http, MessagesRequest)
    turn = await prepare_translated(http, request, arrival_s, RENAMED)
    reserve_memory(http, turn.generation.reply_bytes, turn.generation.num_choices)
    reply = MessagesReply(f"msg_{http.state.request_id}", str(turn.fields["model"]))
    if request.stream:
        return stream(turn, reply, headers, ANTHROPIC)
    await complete(http, turn, reply)
    return json_response(reply.message, turn, headers)


@router.post(
    "/v1/messages/count_tokens",
    **describe(
        "Count the prompt tokens of the same request to /v1/messages.",
        response_schemas.TOKEN_COUNT,
        request=CountTokensRequest,
        statuses=WITH_BODY,
        error="AnthropicError",
    ),
)
async def count_tokens(http: HttpRequest) -> Response:
    """Reply with the number of prompt tokens that the same request to /v1/messages has."""
    state = state_of(http)
    request, headers = await read_request(http, CountTokensRequest)
    chat = await to_chat_request(http, request, RENAMED)
    state.served_name(request.model)
    ready, texts = state.serving()
    tenant = tenant_of(http)
    await state.heavy_work.run(
        lambda: check_prompt_chars(texts, ready, chat.contents, "messages"),
        size=len(await http.body()) // CHECKED_BYTES_PER_CHAR,
        tenant=tenant,
    )
    with renaming(RENAMED, request.tool_paths):
        token_ids, repair_headers = await render_prompt(chat, state, texts, resolve_tool_use(chat), tenant)
    return JSONResponse({"input_tokens": len(token_ids)}, headers=headers | repair_headers)
