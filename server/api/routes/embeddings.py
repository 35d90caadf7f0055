"""POST /v1/embeddings and POST /v1/score: texts as vectors, and how similar two texts are."""

import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing

from fastapi import APIRouter
from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from server.api.formats.embeddings import NUMBER_BYTES, cosine, embedding_entry, listed, score_entry
from server.api.formats.reply import reserve_memory
from server.api.openapi import response_schemas
from server.api.openapi.operations import GENERATION, describe
from server.api.request_body import read_request
from server.generation.embedding import Embedder
from server.generation.state import state_of, tenant_of
from server.http.disconnect import unless_disconnected
from server.http.sliced_response import SlicedResponse
from server.schemas import EmbeddingRequest, ScoreRequest

NUMBERS_PER_TURN = 1 << 13  # numbers that become JSON, or part of a score, in one turn of the event loop: about 1 ms

router = APIRouter()


@router.post(
    "/v1/embeddings",
    **describe("Embed texts.", response_schemas.EMBEDDINGS, request=EmbeddingRequest, statuses=GENERATION),
)
async def embeddings(http: HttpRequest) -> Response:
    """Reply with a vector of length 1 for each text."""
    arrival_s = time.monotonic()
    state_of(http).check_queue(tenant_of(http))
    request, headers = await read_request(http, EmbeddingRequest)
    embedder = Embedder.from_request(http, request, arrival_s, request.dimensions)
    embedder.check_queue(len(request.input))
    prompts = await embedder.tokenize(request.input, "input")
    reserve_memory(http, len(prompts) * embedder.dimensions * NUMBER_BYTES[request.encoding_format])
    entries = await unless_disconnected(http.receive, _entries(embedder, prompts, request))
    return _reply(http, "embd", entries, embedder, headers)


@router.post(
    "/v1/score",
    **describe(
        "Score how similar texts are, by their embeddings.",
        response_schemas.SCORES,
        request=ScoreRequest,
        statuses=GENERATION,
    ),
)
async def score(http: HttpRequest) -> Response:
    """Reply with the cosine of each pair of texts."""
    arrival_s = time.monotonic()
    state_of(http).check_queue(tenant_of(http))
    request, headers = await read_request(http, ScoreRequest)
    embedder = Embedder.from_request(http, request, arrival_s)
    embedder.check_queue(len(request.text_1) + len(request.text_2))
    first = await embedder.tokenize(request.text_1, "text_1")
    second = await embedder.tokenize(request.text_2, "text_2")
    reserve_memory(http, len(first + second) * embedder.dimensions * NUMBER_BYTES["base64"])
    entries = await unless_disconnected(http.receive, _scores(embedder, first, second))
    return _reply(http, "score", entries, embedder, headers)


async def _entries(embedder: Embedder, prompts: Sequence[list[int]], request: EmbeddingRequest) -> list[bytes]:
    entries: list[bytes] = []
    async with aclosing(_vectors(embedder, prompts)) as vectors:
        async for vector in vectors:
            entries.append(embedding_entry(len(entries), vector, request.encoding_format))
    return entries


async def _scores(embedder: Embedder, first: Sequence[list[int]], second: Sequence[list[int]]) -> list[bytes]:
    ones: list[bytes] = []
    entries: list[bytes] = []
    async with aclosing(_vectors(embedder, [*first, *second])) as vectors:
        async for vector in vectors:
            if len(ones) < len(first):
                ones.append(vector)
            else:
                one = ones[0 if len(first) == 1 else len(entries)]
                entries.append(score_entry(len(entries), cosine(one, vector)))
    return entries


async def _vectors(embedder: Embedder, prompts: Sequence[list[int]]) -> AsyncGenerator[bytes, None]:
    """Yield the embeddings one by one; the caller's work on them is sliced into turns of the event loop."""
    per_turn = max(1, NUMBERS_PER_TURN // embedder.dimensions)
    async with aclosing(embedder.embed(prompts)) as parts:
        async for part in parts:
            for index, vector in enumerate(part):
                if index and index % per_turn == 0:
                    await embedder.state.turns.next(embedder.tenant)
                yield vector


def _reply(
    http: HttpRequest, prefix: str, entries: list[bytes], embedder: Embedder, headers: dict[str, str]
) -> Response:
    fields = {
        "id": f"{prefix}-{http.state.request_id}",
        "created": int(time.time()),
        "model": embedder.state.served_name(embedder.request.model),
        "system_fingerprint": embedder.ready.fingerprint,
        "usage": embedder.usage,
    }
    return SlicedResponse(listed(entries, fields), headers, media_type="application/json")
