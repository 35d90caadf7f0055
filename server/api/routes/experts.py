"""GET /experts: the number of tokens that each expert computed. POST /experts/reset: restart the counts from zero."""

import math
import re
from collections.abc import Mapping

from fastapi import APIRouter
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response

from engine.types import ExpertReport, LayerExperts
from server.api.openapi import response_schemas
from server.api.openapi.operations import Schema, describe
from server.api.request_body import add_ignored_params
from server.api.routes import READ
from server.engine_client.output_collector import EngineDied
from server.errors import ApiError, unavailable
from server.generation.admission import LOADING_RETRY_S
from server.generation.state import ServerState, state_of, tenant_of
from server.observability.expert_load import MIN_WINDOW_S, WINDOW_S, imbalance
from server.schemas.validation import fit_for_header
from server.tokenizer.tokenizer import Tokenizer

NUMBER = re.compile(r"-?[0-9]{1,18}(?:\.[0-9]{1,18})?(?:[eE][+-]?[0-9]{1,3})?")  # float() accepts more: nan, 1_0
CHARS_OF_A_VALUE = 16  # a count takes as long to render as this many characters of a text
WINDOW: Schema = {
    "name": "window",
    "in": "query",
    "schema": {"type": "number", "minimum": MIN_WINDOW_S, "maximum": WINDOW_S},
}

router = APIRouter()


@router.api_route(
    "/experts",
    methods=READ,
    **describe(
        "Return the number of tokens that each expert computed.",
        response_schemas.EXPERTS,
        statuses=(503,),
        parameters=(WINDOW,),
    ),
)
async def experts(http: HttpRequest) -> Response:
    """Reply with counts since the engine's start or the last reset, or with ?window=60 of the last minute.

    Tokens that are computed again count again. Windows are whole seconds, rounded up; a reply about one is up to a
    second old.
    """
    window_s = _window_s(http.query_params.get("window"))
    response = await _counts(state_of(http), tenant_of(http), window_s)
    response.headers.update(add_ignored_params({}, fit_for_header(http.query_params.keys() - {"window"})))
    return response


@router.post(
    "/experts/reset",
    **describe("Restart the counts of /experts from zero.", response_schemas.EXPERTS, statuses=(503,)),
)
async def reset(http: HttpRequest) -> Response:
    """Restart the counts, and reply with those of GET /experts from now on. The counters of /metrics do not restart."""
    return await _counts(state_of(http), tenant_of(http), None, reset=True)


def _window_s(text: str | None) -> float | None:
    """Parse the query parameter and round it up to whole seconds, so that few different windows are counted.

    Raises ApiError 400.
    """
    if text is None:
        return None
    if not NUMBER.fullmatch(text):
        raise ApiError("'window' must be a number of seconds.", param="window", code="invalid_type")
    seconds = float(text)
    if seconds > WINDOW_S:
        message = f"'window' must be at most {WINDOW_S:g} seconds."
        raise ApiError(message, param="window", code="decimal_above_max_value")
    if seconds < MIN_WINDOW_S:
        message = f"'window' must be at least {MIN_WINDOW_S:g} second."
        raise ApiError(message, param="window", code="decimal_below_min_value")
    return float(math.ceil(seconds))


async def _counts(state: ServerState, tenant: int, window_s: float | None, *, reset: bool = False) -> Response:
    _, texts = state.serving()
    try:
        report = await state.engine.experts(window_s, reset=reset)
    except EngineDied:
        raise state.admission.unavailable_reason() or unavailable("engine_dead", LOADING_RETRY_S) from None
    num_values = sum(len(top) + len(layer.tokens) for layer in report.layers for top in layer.top_tokens)
    body = await state.heavy_work.run(
        lambda: _body(report, window_s, texts.tokenizer), size=CHARS_OF_A_VALUE * num_values, tenant=tenant
    )
    return JSONResponse(body)


def _body(report: ExpertReport, window_s: float | None, tokenizer: Tokenizer) -> Mapping[str, object]:
    layers = [_layer(index, layer, tokenizer) for index, layer in enumerate(report.layers)]
    return {"since": report.since, "window_s": window_s, "layers": layers}


def _layer(index: int, layer: LayerExperts, tokenizer: Tokenizer) -> Mapping[str, object]:
    """Return one layer's counts. `pairs` has a zero diagonal: each row sums to k - 1 times the expert's tokens."""
    total = sum(layer.tokens)
    share = [tokens / total if total else 0.0 for tokens in layer.tokens]
    return {
        "layer": index,
        "tokens": layer.tokens,
        "share": share,
        "entropy": -sum(part * math.log2(part) for part in share if part),  # in bits: 3 if 8 experts have equal shares
        "imbalance": imbalance(layer.tokens),
        "pairs": layer.pairs,
        "top_tokens": [
            [{"id": token_id, "text": tokenizer.token_text(token_id), "count": count} for token_id, count in top]
            for top in layer.top_tokens
        ],
    }
