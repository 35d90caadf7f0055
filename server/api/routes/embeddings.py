"""POST /v1/embeddings: texts as vectors."""

import time
from collections.abc import Sequence
from contextlib import aclosing

from fastapi import APIRouter
from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from server.api.formats.embeddings import NUMBER_BYTES, embedding_entry, listed, reply_fields
from server.api.formats.reply import reserve_memory
from server.api.openapi import response_schemas
from server.api.openapi.operations import GENERATION, describe
from server.api.request_body import read_request
from server.generation.embedding import Embedder
from server.generation.state import state_of, tenant_of
from server.http.disconnect import unless_disconnected
from server.http.sliced_response import SlicedResponse
from server.schemas import EmbeddingRequest

router = APIRouter()


@router.post(
    "/v1/embeddings",
    **describe("Embed texts.", response_schemas.EMBEDDINGS, request=EmbeddingRequest, statuses=GENERATION),
)
async def embeddings(http: HttpRequest) -> Response:
    """Reply with a vector of length 1 for each text."""
    arrival_s = time.monotonic()
    await state_of(http).check_queue(tenant_of(http))
    request, headers = await read_request(http, EmbeddingRequest)
    embedder = Embedder.from_request(http, request, arrival_s, request.dimensions)
    await embedder.check_queue(len(request.input))
    prompts = await embedder.tokenize(request.input, "input")
    num_bytes = len(prompts) * embedder.dimensions * NUMBER_BYTES[request.encoding_format]
    reserve_memory(http, num_bytes, len(prompts))
    entries = await unless_disconnected(http.receive, _entries(embedder, prompts, request))
    pieces = listed(entries, reply_fields("embd", embedder))
    return SlicedResponse(pieces, headers, media_type="application/json")


async def _entries(embedder: Embedder, prompts: Sequence[list[int]], request: EmbeddingRequest) -> list[bytes]:
    entries: list[bytes] = []
    async with aclosing(embedder.vectors(prompts)) as vectors:
        async for vector in vectors:
            entries.append(embedding_entry(len(entries), vector, request.encoding_format))
    return entries
