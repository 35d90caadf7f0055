"""POST /tokenize, POST /detokenize, GET /tokenizer_info: the checkpoint's tokenizer over HTTP."""

from functools import partial

import orjson
from fastapi import APIRouter
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response

from server.api.chat_turn import render_prompt
from server.api.openapi import response_schemas
from server.api.openapi.operations import WITH_BODY, describe
from server.api.request_body import read_request
from server.api.routes import READ
from server.generation.jobs import CHECKED_BYTES_PER_CHAR
from server.generation.prompt import check_prompt_chars
from server.generation.sampling_params import check_ids
from server.generation.state import ServerState, state_of, tenant_of
from server.http.sliced_response import SlicedResponse
from server.schemas import DetokenizeRequest, TokenizeRequest
from server.tokenizer.detokenizer import Detokenizer
from server.tools.constraints import auto_tool_use

IDS_PER_TURN = 4096  # ids that become text in one turn of the event loop: about 1 ms

router = APIRouter()


@router.post(
    "/tokenize",
    **describe(
        "Return the token ids of a text or a conversation.",
        response_schemas.TOKENS,
        request=TokenizeRequest,
        statuses=WITH_BODY,
    ),
)
async def tokenize(http: HttpRequest) -> Response:
    """Reply with token ids. Texts that are too long for any prompt are refused."""
    state = state_of(http)
    request, headers = await read_request(http, TokenizeRequest)
    state.served_name(request.model)
    ready, texts = state.serving()
    tokens, repair_headers = await _tokens(request, state, tenant_of(http), len(await http.body()))
    body: dict[str, object] = {"tokens": tokens, "count": len(tokens), "max_model_len": ready.max_model_len}

    def render() -> bytes:
        more = {"token_strs": texts.tokenizer.shown_texts(tokens)} if request.return_token_strs else {}
        return orjson.dumps(body | more)

    content = await state.heavy_work.run(render, size=len(tokens), tenant=tenant_of(http))
    return SlicedResponse([content], headers | repair_headers, media_type="application/json")


async def _tokens(
    request: TokenizeRequest, state: ServerState, tenant: int, num_bytes: int
) -> tuple[list[int], dict[str, str]]:
    """Return the token ids, and the headers that name repairs. `num_bytes`: of the request's body."""
    ready, texts = state.serving()
    conversation = request.conversation
    if conversation is not None:
        await state.heavy_work.run(
            lambda: check_prompt_chars(texts, ready, conversation.contents, "messages"),
            size=num_bytes // CHECKED_BYTES_PER_CHAR,
            tenant=tenant,
        )
        return await render_prompt(conversation, state, texts, auto_tool_use(conversation.tools), tenant)
    prompt = request.prompt or ""
    check_prompt_chars(texts, ready, [prompt], "prompt")
    encode = partial(texts.tokenizer.encode, prompt, request.add_special_tokens)
    return await state.heavy_work.run(encode, size=len(prompt), tenant=tenant), {}


@router.post(
    "/detokenize",
    **describe("Return the text of token ids.", response_schemas.PROMPT, request=DetokenizeRequest, statuses=WITH_BODY),
)
async def detokenize(http: HttpRequest) -> Response:
    """Reply with the text of token ids."""
    state = state_of(http)
    request, headers = await read_request(http, DetokenizeRequest)
    state.served_name(request.model)
    ready, texts = state.serving()
    decoder = Detokenizer(texts.tokenizer, request.skip_special_tokens)
    pieces: list[str] = []
    for first in range(0, len(request.tokens), IDS_PER_TURN):
        await state.turns.next(tenant_of(http))
        token_ids = request.tokens[first : first + IDS_PER_TURN]
        check_ids(token_ids, ready.vocab_size, "tokens")
        pieces.append(decoder.push(token_ids))
    pieces.append(decoder.finish())
    content = await state.heavy_work.run(
        lambda: orjson.dumps({"prompt": "".join(pieces)}), size=len(request.tokens), tenant=tenant_of(http)
    )
    return SlicedResponse([content], headers, media_type="application/json")


@router.api_route(
    "/tokenizer_info",
    methods=READ,
    **describe(
        "Return the tokenizer's special tokens and the chat template in use.",
        response_schemas.TOKENIZER_INFO,
        statuses=(503,),
    ),
)
async def tokenizer_info(http: HttpRequest) -> Response:
    """Reply with the special tokens and the template, which a client needs to prepare prompts itself."""
    _, texts = state_of(http).serving()
    tokenizer = texts.tokenizer
    eos_id = next(iter(tokenizer.eos_ids), None)
    return JSONResponse(
        {
            "bos_token": None if tokenizer.bos_id is None else tokenizer.token_text(tokenizer.bos_id),
            "eos_token": None if eos_id is None else tokenizer.token_text(eos_id),
            "chat_template": texts.chat_template.source,
            "vocab_size": tokenizer.vocab_size,
        }
    )
