"""GET /v1/models: the served model and its adapters. The reply comes from memory, also while the model loads."""

from dataclasses import asdict

from fastapi import APIRouter
from starlette.exceptions import HTTPException as RoutingError
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response

from server.api.openapi import response_schemas
from server.api.openapi.operations import Schema, describe
from server.api.routes import READ
from server.generation.state import ServerState, state_of

MODEL_ID: Schema = {"name": "model_id", "in": "path", "required": True, "schema": {"type": "string"}}

router = APIRouter()


@router.api_route(
    "/v1/models",
    methods=READ,
    **describe("List the served model, under each of its names, and its adapters.", response_schemas.MODELS),
)
async def models(http: HttpRequest) -> Response:
    """Reply with an entry for each name of the model, and one for each LoRA adapter."""
    state = state_of(http)
    return JSONResponse({"object": "list", "data": [model_entry(state, name) for name in state.all_names]})


@router.api_route(
    "/v1/models/{model_id:path}",
    methods=READ,
    **describe("Describe one model.", response_schemas.MODEL, statuses=(404,), parameters=(MODEL_ID,)),
)
async def model(http: HttpRequest, model_id: str) -> Response:
    """Reply with the entry of one name. Names are case-sensitive."""
    if not model_id:
        raise RoutingError(404)
    state = state_of(http)
    state.served_name(model_id)
    return JSONResponse(model_entry(state, model_id))


def model_entry(state: ServerState, name: str) -> dict[str, object]:
    """Return one entry. Fields that need the model are null while it loads; `num_experts` is 0 without experts.

    `type` and `capabilities` are required by Mistral's client, and `job` where the type is "fine-tuned".
    """
    ready, is_adapter = state.engine.ready, name not in state.model_names
    generates = ready is None or ready.generates
    return {
        "id": name,
        "object": "model",
        "created": state.adapters_loaded_s.get((name, state.adapter_of(name)), state.created_s),
        "owned_by": "smoe",
        "type": "fine-tuned" if is_adapter else "base",
        **({"job": ""} if is_adapter else {}),
        "capabilities": {
            "completion_chat": generates,
            "function_calling": generates and state.calls_tools,
            "embeddings": state.embeds,
        },
        "root": state.model_names[0],
        "parent": state.model_names[0] if is_adapter else None,
        "max_model_len": ready.max_model_len if ready else None,
        "num_layers": ready.num_layers if ready else None,
        "num_experts": ready.num_experts if ready else None,
        "experts_per_token": ready.experts_per_token if ready else None,
        "generation_defaults": asdict(state.texts.defaults) if state.texts else None,
    }
