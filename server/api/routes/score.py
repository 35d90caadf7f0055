"""POST /v1/score and POST /v1/rerank: how similar texts are, by the cosine of their embeddings."""

import time
from collections.abc import Sequence
from contextlib import aclosing

import orjson
from fastapi import APIRouter
from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from server.api.formats.embeddings import NUMBER_BYTES, cosine, listed, ranked, reply_fields, score_entry
from server.api.formats.reply import reserve_memory
from server.api.openapi import response_schemas
from server.api.openapi.operations import GENERATION, describe
from server.api.request_body import read_request
from server.generation.embedding import Embedder
from server.generation.state import state_of, tenant_of
from server.http.disconnect import unless_disconnected
from server.http.sliced_response import SlicedResponse
from server.schemas import RerankRequest, ScoreRequest

router = APIRouter()


@router.post(
    "/v1/score",
    **describe("Score how similar texts are.", response_schemas.SCORES, request=ScoreRequest, statuses=GENERATION),
)
async def score(http: HttpRequest) -> Response:
    """Reply with the cosine of each pair of texts."""
    arrival_s = time.monotonic()
    await state_of(http).check_queue(tenant_of(http))
    request, headers = await read_request(http, ScoreRequest)
    embedder = Embedder.from_request(http, request, arrival_s)
    scores = await _scores(http, embedder, ("text_1", request.text_1), ("text_2", request.text_2))
    pieces = listed([score_entry(*entry) for entry in enumerate(scores)], reply_fields("score", embedder))
    return SlicedResponse(pieces, headers, media_type="application/json")


@router.post(
    "/v1/rerank",
    **describe(
        "Sort documents by their similarity to a query.",
        response_schemas.RANKING,
        request=RerankRequest,
        statuses=GENERATION,
    ),
)
async def rerank(http: HttpRequest) -> Response:
    """Reply with the documents, the most similar first."""
    arrival_s = time.monotonic()
    await state_of(http).check_queue(tenant_of(http))
    request, headers = await read_request(http, RerankRequest)
    embedder = Embedder.from_request(http, request, arrival_s)
    scores = await _scores(http, embedder, ("query", [request.query]), ("documents", request.texts))
    texts = request.texts if request.return_documents else None
    body = reply_fields("rerank", embedder) | {"results": ranked(scores, texts, request.top_n)}
    return SlicedResponse([orjson.dumps(body)], headers, media_type="application/json")


async def _scores(
    http: HttpRequest, embedder: Embedder, first: tuple[str, list[str]], second: tuple[str, list[str]]
) -> list[float]:
    """Return the cosines of the pairs of texts, given with the names of their fields; one first text pairs with all."""
    (first_field, first_texts), (second_field, second_texts) = first, second
    await embedder.check_queue(len(first_texts) + len(second_texts))
    prompts = await embedder.tokenize(first_texts, first_field), await embedder.tokenize(second_texts, second_field)
    num_texts = len(first_texts) + len(second_texts)
    reserve_memory(http, num_texts * embedder.dimensions * NUMBER_BYTES["base64"], num_texts)
    return await unless_disconnected(http.receive, _cosines(embedder, *prompts))


async def _cosines(embedder: Embedder, first: Sequence[list[int]], second: Sequence[list[int]]) -> list[float]:
    ones: list[bytes] = []
    scores: list[float] = []
    async with aclosing(embedder.vectors([*first, *second])) as vectors:
        async for vector in vectors:
            if len(ones) < len(first):
                ones.append(vector)
            else:
                scores.append(cosine(ones[0 if len(first) == 1 else len(scores)], vector))
    return scores
