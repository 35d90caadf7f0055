"""GET /v1/models: what is served here. Answered from memory, also while the model loads."""

from fastapi import APIRouter
from starlette.exceptions import HTTPException as RoutingError
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response

from server.api.routes import READ
from server.generation.state import ServerState, state_of

router = APIRouter()


@router.api_route("/v1/models", methods=READ)
async def models(http: HttpRequest) -> Response:
    """The model under each of its names."""
    state = state_of(http)
    return JSONResponse({"object": "list", "data": [_entry(state, name) for name in state.model_names]})


@router.api_route("/v1/models/{model_id:path}", methods=READ)
async def model(http: HttpRequest, model_id: str) -> Response:
    """One entry, by its name as it is spelled."""
    if not model_id:
        raise RoutingError(404)
    state = state_of(http)
    state.check_model(model_id)
    return JSONResponse(_entry(state, model_id))


def _entry(state: ServerState, name: str) -> dict[str, str | int | None]:
    """What only the loaded model tells is null until then; `num_experts` is 0 for a model without experts."""
    ready = state.engine.ready
    return {
        "id": name,
        "object": "model",
        "created": state.created_s,
        "owned_by": "smoe",
        "root": state.model_names[0],
        "max_model_len": ready.max_model_len if ready else None,
        "num_layers": ready.num_layers if ready else None,
        "num_experts": ready.num_experts if ready else None,
        "experts_per_token": ready.experts_per_token if ready else None,
    }
