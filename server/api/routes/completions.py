"""POST /v1/completions: continue a prompt, or score it."""

import time
from collections.abc import Sequence

from fastapi import APIRouter
from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from server.api.formats.completion import CompletionFormat
from server.api.formats.reply import common_fields, respond
from server.api.openapi import response_schemas
from server.api.openapi.operations import GENERATION, describe
from server.api.request_body import read_request
from server.event_loop import INLINE_CHARS, off_loop
from server.generation.choice import Echo
from server.generation.generation import Generation
from server.generation.jobs import JobBuilder
from server.generation.prompt import Prompt, truncated
from server.generation.state import state_of
from server.schemas import CompletionRequest
from server.tokenizer.detokenizer import Detokenizer
from server.tokenizer.tokenizer import Tokenizer

router = APIRouter()


@router.post(
    "/v1/completions",
    **describe(
        "Continue or score prompts.",
        response_schemas.COMPLETION,
        request=CompletionRequest,
        statuses=GENERATION,
        is_streamed=True,
    ),
)
async def completions(http: HttpRequest) -> Response:
    """Reply with a text per prompt and choice."""
    arrival_s = time.monotonic()
    state_of(http).check_queue(http.state.request_id)
    request, headers = await read_request(http, CompletionRequest)
    builder = JobBuilder.from_request(http, request, arrival_s)
    prompts = await _prompts(request, builder.texts.tokenizer)
    generation = await Generation.prepare(builder, prompts, http.state.request_id)
    fields = common_fields("cmpl", generation, builder.model_name, builder.ready.fingerprint)
    reply_format = CompletionFormat(request, prompts, builder.texts.tokenizer)
    return await respond(http, request, generation, reply_format, fields, headers)


async def _prompts(request: CompletionRequest, tokenizer: Tokenizer) -> list[Prompt]:
    heavy = sum(map(len, request.prompt_texts)) > INLINE_CHARS
    return await off_loop(lambda: [_prompt(request, prompt, tokenizer) for prompt in request.prompt], heavy=heavy)


def _prompt(request: CompletionRequest, prompt: str | Sequence[int], tokenizer: Tokenizer) -> Prompt:
    encoded = tokenizer.encode(prompt, request.add_special_tokens) if isinstance(prompt, str) else list(prompt)
    token_ids = truncated(encoded, request)
    echoed = prompt if len(token_ids) == len(encoded) else token_ids
    echo = _echo(request, echoed, token_ids, tokenizer) if request.echo else None
    return Prompt(token_ids, is_continued=True, echo=echo)


def _echo(request: CompletionRequest, prompt: str | Sequence[int], token_ids: list[int], tokenizer: Tokenizer) -> Echo:
    """Return the prompt's text and, for logprobs, each token's offset in it. A text is repeated exactly as sent."""
    if isinstance(prompt, str) and not request.has_prompt_logprobs:
        return Echo(prompt)
    decoder = Detokenizer(tokenizer, request.skip_special_tokens)
    text, text_offsets = "", []
    for token_id in token_ids:
        text_offsets.append(len(text))
        text += decoder.push([token_id])
    if isinstance(prompt, str):
        text = prompt
    return Echo(text, token_ids, text_offsets) if request.has_prompt_logprobs else Echo(text)
