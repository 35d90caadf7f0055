"""POST /v1/completions: a prompt is continued, or scored."""

import time
from collections.abc import Sequence

from fastapi import APIRouter
from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from engine.messages import Ready
from server.api.formats.completion import CompletionFormat
from server.api.formats.reply import common_fields, respond
from server.api.request_body import read_request
from server.event_loop import INLINE_CHARS, off_loop
from server.generation.choice import Echo
from server.generation.generation import Generation
from server.generation.jobs import (
    Prompt,
    build_jobs,
    check_prompt_chars,
    completion_limit,
    resolve_seed,
    truncated,
)
from server.generation.sampling_params import check_token_ids
from server.generation.state import TextFrontend, state_of, tenant_of
from server.schemas import CompletionRequest
from server.tokenizer.detokenizer import Detokenizer
from server.tokenizer.tokenizer import Tokenizer

router = APIRouter()


@router.post("/v1/completions")
async def completions(http: HttpRequest) -> Response:
    """Answers with a text per prompt and choice."""
    arrival_s = time.monotonic()
    state = state_of(http)
    state.check_queue(http.state.request_id)
    request, headers = await read_request(http, CompletionRequest)
    state.check_model(request.model)
    ready, texts = state.serving()
    check_token_ids(request, ready.vocab_size, ready.eos_token_ids)
    prompts = await _prompts(request, ready, texts)
    form = await texts.grammars.compile(request)
    seed = resolve_seed(state, request)
    is_default = "max_tokens" not in request.model_fields_set
    limits = [
        completion_limit(len(prompt.token_ids), request.max_tokens, ready, "prompt", is_default=is_default)
        for prompt in prompts
    ]
    jobs = await build_jobs(
        state, texts, request, prompts, limits, seed=seed, arrival_s=arrival_s, tenant=tenant_of(http), form=form
    )
    http_id = http.state.request_id
    fields = common_fields("cmpl", http_id, request.model, ready, seed)
    layout = CompletionFormat(request, prompts, texts.tokenizer)
    return await respond(http, request, Generation(state, jobs, http_id, request.user), layout, fields, headers)


async def _prompts(request: CompletionRequest, ready: Ready, texts: TextFrontend) -> list[Prompt]:
    contents = [prompt for prompt in request.prompt if isinstance(prompt, str)]
    if request.truncate_prompt_tokens is None:
        check_prompt_chars(texts, ready, contents, "prompt")
    heavy = sum(map(len, contents)) > INLINE_CHARS
    return await off_loop(lambda: [_prompt(request, prompt, texts.tokenizer) for prompt in request.prompt], heavy=heavy)


def _prompt(request: CompletionRequest, prompt: str | Sequence[int], tokenizer: Tokenizer) -> Prompt:
    encoded = tokenizer.encode(prompt, request.add_special_tokens) if isinstance(prompt, str) else list(prompt)
    token_ids = truncated(encoded, request)
    told = prompt if len(token_ids) == len(encoded) else token_ids
    echo = _echo(request, told, token_ids, tokenizer) if request.echo else None
    return Prompt(token_ids, is_continued=True, echo=echo)


def _echo(request: CompletionRequest, prompt: str | Sequence[int], token_ids: list[int], tokenizer: Tokenizer) -> Echo:
    """The prompt's text, and for logprobs each token's place in it. A text is repeated as it was sent."""
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
