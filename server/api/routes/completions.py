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
from server.generation.choice import Echo
from server.generation.generation import Generation
from server.generation.jobs import JobBuilder
from server.generation.prompt import Prompt, truncated
from server.generation.state import state_of, tenant_of
from server.schemas import CompletionRequest
from server.tokenizer.detokenizer import Detokenizer
from server.tokenizer.tokenizer import Tokenizer

ECHO_IDS_PER_TURN = 1024  # ids that become text in one turn of the event loop: about 2 ms

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
    await state_of(http).check_queue(tenant_of(http))
    request, headers = await read_request(http, CompletionRequest)
    builder = await JobBuilder.from_request(http, request, arrival_s)
    await builder.check_queue(len(request.prompt))
    prompts = await _prompts(request, builder)
    generation = await Generation.prepare(builder, prompts, http.state.record)
    fields = common_fields("cmpl", generation, builder.model_name, builder.fingerprint)
    reply_format = CompletionFormat(request, prompts, builder.texts.tokenizer)
    return await respond(http, request, generation, reply_format, fields, headers)


async def _prompts(request: CompletionRequest, builder: JobBuilder) -> list[Prompt]:
    """Tokenize the prompts, and make the texts that the reply repeats. Raises ApiError 400 for a reply too large."""
    tokenizer = builder.texts.tokenizer
    encoded = await builder.state.heavy_work.run(
        lambda: [_ids(request, prompt, tokenizer) for prompt in request.prompt],
        size=sum(map(len, request.prompt_texts)),
        tenant=builder.tenant,
    )
    ids_of = [truncated(token_ids, request, builder.ready) for token_ids in encoded]
    if not request.echo:
        return [Prompt(token_ids, is_continued=True) for token_ids in ids_of]
    builder.limits(list(map(len, ids_of)))
    return [
        Prompt(token_ids, is_continued=True, echo=await _echo(request, prompt, token_ids, len(all_ids), builder))
        for prompt, token_ids, all_ids in zip(request.prompt, ids_of, encoded, strict=True)
    ]


def _ids(request: CompletionRequest, prompt: str | Sequence[int], tokenizer: Tokenizer) -> list[int]:
    return tokenizer.encode(prompt, request.add_special_tokens) if isinstance(prompt, str) else list(prompt)


async def _echo(
    request: CompletionRequest, prompt: object, token_ids: list[int], num_sent: int, builder: JobBuilder
) -> Echo:
    """Return the prompt's text and, for logprobs, each token's offset in it. A text is repeated exactly as sent, unless
    it was truncated: `num_sent` counts its tokens before that."""
    sent_text = prompt if isinstance(prompt, str) and len(token_ids) == num_sent else None
    if sent_text is not None and not request.has_prompt_logprobs:
        return Echo(sent_text)
    decoder = Detokenizer(builder.texts.tokenizer, request.skip_special_tokens)
    pieces: list[str] = []
    text_offsets: list[int] = []
    num_chars = 0
    for first in range(0, len(token_ids), ECHO_IDS_PER_TURN):
        await builder.next_turn()
        for token_id in token_ids[first : first + ECHO_IDS_PER_TURN]:
            text_offsets.append(num_chars)
            pieces.append(decoder.push([token_id]))
            num_chars += len(pieces[-1])
    text = "".join(pieces) if sent_text is None else sent_text
    return Echo(text, token_ids, text_offsets) if request.has_prompt_logprobs else Echo(text)
