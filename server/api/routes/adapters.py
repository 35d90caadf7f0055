"""POST /v1/load_lora_adapter and /v1/unload_lora_adapter: LoRA adapters while the server runs. Both need
--enable-runtime-lora."""

import logging
import time
from pathlib import Path

from fastapi import APIRouter
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response

from server.api.openapi import response_schemas
from server.api.openapi.operations import WITH_BODY, describe
from server.api.request_body import read_request
from server.api.routes.models import model_entry
from server.engine_client.adapter_queries import AdapterError
from server.engine_client.output_collector import EngineDied
from server.errors import adapter_not_found, invalid_value, lora_disabled, unavailable
from server.generation.admission import LOADING_RETRY_S
from server.generation.state import ServerState, state_of
from server.schemas import LoadAdapterRequest, UnloadAdapterRequest

log = logging.getLogger(__name__)

MAX_ADAPTERS = 1024  # loaded while the server runs or before; each takes a name, and a line of /v1/models

router = APIRouter()


@router.post(
    "/v1/load_lora_adapter",
    **describe(
        "Load a LoRA adapter and serve it under a new name, or with `load_inplace` under its name from then on.",
        response_schemas.MODEL,
        request=LoadAdapterRequest,
        statuses=WITH_BODY,
    ),
)
async def load(http: HttpRequest) -> Response:
    """Reply with the adapter's entry in /v1/models when requests may name it. Requests are answered meanwhile."""
    state = _state_of(http)
    request, headers = await read_request(http, LoadAdapterRequest)
    name = request.lora_name
    if not name or name != name.strip():
        raise invalid_value("'lora_name' must not be empty or have spaces at its ends.", "lora_name")
    is_replaced = request.load_inplace and name in state.adapter_names
    if name in state.all_names and not is_replaced:
        reason = "is the model itself" if name in state.model_names else "is served already; unload it first"
        raise invalid_value(f"'lora_name' {reason}, or choose another.", "lora_name")
    names = state.engine.loading_adapters.union(state.adapter_names)  # many loads may run at once
    if name not in names and len(names) >= MAX_ADAPTERS:
        raise invalid_value(
            f"'lora_name' would be one of more than {MAX_ADAPTERS} adapters; unload others.", "lora_name"
        )
    state.serving()
    try:
        await state.engine.load_adapter(name, _absolute(request.lora_path))
    except AdapterError as error:
        raise invalid_value(f"'lora_path' cannot be served: {error}.", "lora_path") from None
    except EngineDied:
        raise state.admission.unavailable_reason() or unavailable("engine_dead", LOADING_RETRY_S) from None
    state.date_adapters(int(time.time()))
    done = "replaced" if is_replaced else "loaded"
    log.info("LoRA adapter %s %s from %s", ascii(name), done, ascii(request.lora_path))
    return JSONResponse(model_entry(state, name), headers=headers)


@router.post(
    "/v1/unload_lora_adapter",
    **describe(
        "Serve a LoRA adapter no more. Requests that have it finish with it.",
        response_schemas.DELETED_MODEL,
        request=UnloadAdapterRequest,
        statuses=WITH_BODY,
    ),
)
async def unload(http: HttpRequest) -> Response:
    """Take the name away; the engine frees the memory when the last request that has the adapter has ended."""
    state = _state_of(http)
    request, headers = await read_request(http, UnloadAdapterRequest)
    state.serving()
    if request.lora_name not in state.adapter_names:
        raise adapter_not_found(state.adapter_names, is_model=request.lora_name in state.model_names)
    state.unload_adapter(request.lora_name)
    state.date_adapters(int(time.time()))
    log.info("LoRA adapter %s unloaded", ascii(request.lora_name))
    return JSONResponse({"id": request.lora_name, "object": "model", "deleted": True}, headers=headers)


def _state_of(http: HttpRequest) -> ServerState:
    state = state_of(http)
    if not state.lora.at_run_time:
        raise lora_disabled()
    return state


def _absolute(path: str) -> str:
    """Return a path that the engine, which has another working directory, understands. Raises ApiError."""
    if "\0" in path:
        raise invalid_value("'lora_path' must not contain a NUL character.", "lora_path")
    return str(Path(path).absolute())
