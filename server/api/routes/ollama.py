"""Ollama's API: /api/chat and /api/generate, translated to chat, embeddings, and what is served.

Nothing here loads, changes or deletes models: one is served.
"""

import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import aclosing
from datetime import UTC, datetime
from typing import TypeVar

import orjson
from fastapi import APIRouter
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response

from server.api.chat_translation import complete, json_response, renaming, stream
from server.api.formats.embeddings import NUMBER_BYTES, numbers_of
from server.api.formats.ollama import NS, OllamaChatReply, OllamaGenerateReply, OllamaReply, line, written
from server.api.formats.reply import reserve_memory
from server.api.openapi import response_schemas
from server.api.openapi.operations import GENERATION, NDJSON, WITH_BODY, describe
from server.api.request_body import read_request
from server.api.routes import READ
from server.api.truncation import prepare_truncated
from server.errors import ollama_error, unsupported_parameter
from server.generation.embedding import Embedder
from server.generation.state import ServerState, fingerprint_of, state_of, tenant_of
from server.http.disconnect import unless_disconnected
from server.http.sliced_response import SlicedResponse
from server.http.sse import EventFormat
from server.schemas import (
    EmbeddingRequest,
    OllamaChatRequest,
    OllamaEmbeddingsRequest,
    OllamaEmbedRequest,
    OllamaGenerateRequest,
    OllamaShowRequest,
    validate,
)
from server.schemas.ollama_api.request import EmbeddingTextsRequest, GeneratingRequest
from server.schemas.validation import RequestModel

VERSION = "0.12.0"  # of Ollama, whose API this is: clients refuse versions that are too old
FAMILY = "llama"  # as Mixtral's GGUF files name their architecture
NEVER = "2100-01-01T00:00:00Z"  # when the model leaves memory
LATEST = ":latest"  # the tag that Ollama's clients add to names without one
RENAMED = {
    r"max_tokens": "options.num_predict",
    r"repetition_penalty": "options.repeat_penalty",
    r"(temperature|top_p|top_k|min_p|frequency_penalty|presence_penalty|seed|stop)": r"options.\1",
    r"response_format\b.*": "format",
}
NO_TOOLS = (
    "This model was not trained to call tools: send none. "
    "If the server is started with --tool-emulation, it describes the tools in the prompt."
)
RENAMED_IN_PROMPT = {**RENAMED, r"messages\b.*": "prompt"}
LINES = EventFormat(
    b"", b"", lambda error: line(ollama_error(error)), separator=b"\n", media_type="application/x-ndjson"
)

SomeRequest = TypeVar("SomeRequest", bound=RequestModel)

router = APIRouter()


@router.api_route(
    "/api/version",
    methods=READ,
    **describe("Name the version of Ollama's API.", response_schemas.OLLAMA_VERSION, error="OllamaError"),
)
async def version() -> Response:
    """Reply with a version that clients look for."""
    return JSONResponse({"version": VERSION})


@router.api_route(
    "/api/tags",
    methods=READ,
    **describe(
        "List the served model and its adapters, for Ollama's clients.",
        response_schemas.OLLAMA_MODELS,
        error="OllamaError",
    ),
)
async def tags(http: HttpRequest) -> Response:
    """Reply with an entry for each name."""
    state = state_of(http)
    return JSONResponse({"models": [_entry(state, name) for name in state.all_names]})


@router.api_route(
    "/api/ps",
    methods=READ,
    **describe(
        "List the models in memory: the same, once it is loaded.", response_schemas.OLLAMA_MODELS, error="OllamaError"
    ),
)
async def loaded(http: HttpRequest) -> Response:
    """Reply with an entry for each name, or none while the model loads."""
    state = state_of(http)
    ready = state.engine.ready
    if ready is None:
        return JSONResponse({"models": []})
    size = ready.weight_bytes + ready.kv_cache_bytes
    more = {
        "size": size,
        "size_vram": 0 if ready.device == "cpu" else size,
        "expires_at": NEVER,
        "context_length": ready.max_model_len,
    }
    return JSONResponse({"models": [_entry(state, name) | more for name in state.all_names]})


@router.post(
    "/api/show",
    **describe(
        "Describe a model, for Ollama's clients.",
        response_schemas.OLLAMA_MODEL,
        request=OllamaShowRequest,
        statuses=WITH_BODY,
        error="OllamaError",
    ),
)
async def show(http: HttpRequest) -> Response:
    """Reply with sizes, template and abilities of the model."""
    request, headers = await read_request(http, OllamaShowRequest, takes_form_type=True)
    state = state_of(http)
    name = state.served_name(_served(state, request.model or request.name))
    ready, texts = state.serving()
    abilities = {
        "completion": ready.generates,
        "tools": ready.generates and state.calls_tools,
        "embedding": state.embeds,
    }
    body = {
        "modelfile": "",
        "parameters": "",
        "template": texts.chat_template.source,
        "details": _details(state),
        "model_info": {
            "general.architecture": FAMILY,
            "general.basename": name,
            "general.parameter_count": ready.num_parameters,
            f"{FAMILY}.context_length": ready.max_model_len,
            f"{FAMILY}.embedding_length": ready.dim,
            f"{FAMILY}.block_count": ready.num_layers,
            f"{FAMILY}.expert_count": ready.num_experts,
            f"{FAMILY}.expert_used_count": ready.experts_per_token,
        },
        "capabilities": [ability for ability, has_it in abilities.items() if has_it],
        "modified_at": written(datetime.fromtimestamp(state.created_s, UTC)),
    }
    return JSONResponse(body, headers=headers)


@router.post(
    "/api/chat",
    **describe(
        "Generate the next message of a conversation: Ollama's chat, translated.",
        response_schemas.OLLAMA_CHAT,
        request=OllamaChatRequest,
        statuses=GENERATION,
        is_streamed=True,
        streams=NDJSON,
        error="OllamaError",
    ),
)
async def chat(http: HttpRequest) -> Response:
    """Reply with a message, by default in parts."""
    return await _respond(http, OllamaChatRequest, OllamaChatReply, RENAMED)


@router.post(
    "/api/generate",
    **describe(
        "Answer a prompt: Ollama's generate, translated to a chat of one message.",
        response_schemas.OLLAMA_GENERATED,
        request=OllamaGenerateRequest,
        statuses=GENERATION,
        is_streamed=True,
        streams=NDJSON,
        error="OllamaError",
    ),
)
async def generate(http: HttpRequest) -> Response:
    """Reply with a text, by default in parts."""
    return await _respond(http, OllamaGenerateRequest, OllamaGenerateReply, RENAMED_IN_PROMPT)


@router.post(
    "/api/embed",
    **describe(
        "Embed texts, for Ollama's clients.",
        response_schemas.OLLAMA_EMBEDDINGS,
        request=OllamaEmbedRequest,
        statuses=GENERATION,
        error="OllamaError",
    ),
)
async def embed(http: HttpRequest) -> Response:
    """Reply with a vector of length 1 for each text."""
    request, headers, arrival_s = await _read(http, OllamaEmbedRequest)
    embedder, vectors = await _embed(http, request, arrival_s, {"truncate_prompt_tokens": "truncate"})
    fields = {
        "model": _name(http, request),
        "total_duration": round((time.monotonic() - arrival_s) * NS),
        "load_duration": 0,
        "prompt_eval_count": embedder.usage["prompt_tokens"],
    }
    pieces = [orjson.dumps(fields)[:-1], b',"embeddings":[', *_separated(vectors), b"]}"]
    return SlicedResponse(pieces, headers, media_type="application/json")


@router.post(
    "/api/embeddings",
    **describe(
        "Embed one text, for Ollama's older clients.",
        response_schemas.OLLAMA_EMBEDDING,
        request=OllamaEmbeddingsRequest,
        statuses=GENERATION,
        error="OllamaError",
    ),
)
async def embeddings(http: HttpRequest) -> Response:
    """Reply with a vector of length 1, or an empty one for an empty text."""
    request, headers, arrival_s = await _read(http, OllamaEmbeddingsRequest)
    state_of(http).served_name(_served(state_of(http), request.model))
    vectors: Sequence[bytes] = [b"[]"]
    if request.prompt:
        _, vectors = await _embed(http, request, arrival_s, {r"input\b.*": "prompt"})
    return SlicedResponse([b'{"embedding":', *vectors, b"}"], headers, media_type="application/json")


async def _read(http: HttpRequest, model: type[SomeRequest]) -> tuple[SomeRequest, dict[str, str], float]:
    """Read a request that takes part in the queue. Return it, the headers of its reply, and when it arrived."""
    arrival_s = time.monotonic()
    await state_of(http).check_queue(tenant_of(http))
    return *await read_request(http, model, takes_form_type=True), arrival_s


async def _respond(
    http: HttpRequest,
    model: type[GeneratingRequest],
    reply_class: Callable[[str, float], OllamaReply],
    renamed: Mapping[str, str],
) -> Response:
    request, headers, arrival_s = await _read(http, model)
    reply = reply_class(_name(http, request), arrival_s)
    state = state_of(http)
    named = request.model_copy(update={"model": _served(state, request.model)})
    state.served_name(named.model)
    state.serving()
    if request.is_empty:
        return JSONResponse(reply.loaded(), headers=headers)
    if request.has_tools and not state.calls_tools:
        raise unsupported_parameter("tools", NO_TOOLS)
    turn = await prepare_truncated(http, named, reply.arrival_s, renamed)
    reserve_memory(http, turn.generation.reply_bytes, turn.generation.num_choices)
    if request.stream:
        return stream(turn, reply, headers, LINES, line)
    await complete(http, turn, reply)
    return json_response(reply.record, turn, headers)


async def _embed(
    http: HttpRequest, request: EmbeddingTextsRequest, arrival_s: float, renamed: Mapping[str, str]
) -> tuple[Embedder, list[bytes]]:
    """Return the embedder and the JSON of each text's embedding. `renamed`: this endpoint's names of fields."""
    named = request.model_copy(update={"model": _served(state_of(http), request.model)})
    with renaming(renamed):
        body = validate(EmbeddingRequest, named.embedding_body())
        embedder = Embedder.from_request(http, body, arrival_s, body.dimensions)
        await embedder.check_queue(len(body.input))
        prompts = await embedder.tokenize(body.input, "input")
    reserve_memory(http, len(prompts) * embedder.dimensions * NUMBER_BYTES["float"], len(prompts))
    return embedder, await unless_disconnected(http.receive, _vectors(embedder, prompts))


async def _vectors(embedder: Embedder, prompts: Sequence[list[int]]) -> list[bytes]:
    """Return the JSON of each embedding."""
    async with aclosing(embedder.vectors(prompts)) as vectors:
        return [orjson.dumps(numbers_of(vector)) async for vector in vectors]


def _separated(items: Sequence[bytes]) -> list[bytes]:
    return [piece for item in items for piece in (b",", item)][1:]


def _served(state: ServerState, name: str | None) -> str | None:
    """Return a name as it is served: with or without the tag that clients add and leave out."""
    if name is None:
        return None
    return next(
        (served for served in (name, name.removesuffix(LATEST), name + LATEST) if served in state.all_names), name
    )


def _name(http: HttpRequest, request: GeneratingRequest | OllamaEmbedRequest) -> str:
    """Return the name that the reply repeats."""
    return request.model or state_of(http).model_names[0]


def _entry(state: ServerState, name: str) -> dict[str, object]:
    """Return what is known of a model; sizes are 0 while it loads."""
    ready = state.engine.ready
    fingerprint = "" if ready is None else fingerprint_of(ready, state.adapter_of(name))
    return {
        "name": name,
        "model": name,
        "modified_at": written(datetime.fromtimestamp(state.created_s, UTC)),
        "size": 0 if ready is None else ready.weight_bytes,
        "digest": hashlib.sha256(fingerprint.encode()).hexdigest(),
        "details": _details(state),
    }


def _details(state: ServerState) -> dict[str, object]:
    ready = state.engine.ready
    quantization = "" if ready is None else ready.dtype if ready.quantization == "none" else ready.quantization
    return {
        "parent_model": "",
        "format": "gguf",
        "family": FAMILY,
        "families": [FAMILY],
        "parameter_size": "" if ready is None else _in_billions(ready.num_parameters),
        "quantization_level": quantization,
    }


def _in_billions(count: int) -> str:
    return f"{count / 1e9:.1f}B" if count >= 1e9 else f"{count / 1e6:.1f}M"
