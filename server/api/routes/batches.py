"""/v1/batches: files of requests that run behind those of clients, in OpenAI's format. Needs --batch-dir."""

import asyncio

from fastapi import APIRouter
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response

from server.api.batch_access import PageLimits, StorageRoute, access_of, found, list_objects
from server.api.openapi import response_schemas
from server.api.openapi.operations import WITH_BODY, Schema, describe
from server.api.request_body import read_request
from server.api.routes import READ
from server.batch.store import Object
from server.errors import ApiError, invalid_value, too_many_batches
from server.schemas import CreateBatchRequest

MAX_OPEN = 100  # batches of one API key that have not ended
WINDOW_S = 24 * 3600
PAGE_LIMITS = PageLimits("batches", limit=20, max_limit=100)  # OpenAI's limits; a batch may have 36 KiB of metadata
BATCH_ID: Schema = {"name": "batch_id", "in": "path", "required": True, "schema": {"type": "string"}}

router = APIRouter(route_class=StorageRoute)


@router.post(
    "/v1/batches",
    **describe(
        "Start a batch of requests.",
        response_schemas.BATCH,
        request=CreateBatchRequest,
        statuses=(*WITH_BODY, 429, 507),
    ),
)
async def create(http: HttpRequest) -> Response:
    """Store the batch; the batch service checks its file and runs it."""
    access, owner = access_of(http)
    request, headers = await read_request(http, CreateBatchRequest)
    item = await asyncio.to_thread(access.store.get, "files", owner, request.input_file_id)
    if found(item, "files", "input_file_id")["purpose"] != "batch":
        raise invalid_value("'input_file_id' must be a file that was uploaded for a batch.", "input_file_id")
    if await asyncio.to_thread(access.store.num_open_batches, owner) >= MAX_OPEN:
        raise too_many_batches(MAX_OPEN)
    batch = _new_batch(request, int(access.store.clock()))
    stored = await asyncio.to_thread(access.store.add_batch, owner, batch)
    access.service.wake()
    return JSONResponse(stored, headers=headers)


def _new_batch(request: CreateBatchRequest, now: int) -> Object:
    times = ("in_progress", "finalizing", "completed", "failed", "expired", "cancelling", "cancelled")
    return {
        "object": "batch",
        "endpoint": request.endpoint,
        "errors": None,
        "input_file_id": request.input_file_id,
        "completion_window": request.completion_window,
        "status": "validating",
        "output_file_id": None,
        "error_file_id": None,
        "created_at": now,
        "expires_at": now + WINDOW_S,
        **{f"{name}_at": None for name in times},
        "request_counts": {"total": 0, "completed": 0, "failed": 0},
        "metadata": request.metadata,
    }


@router.api_route(
    "/v1/batches",
    methods=READ,
    **describe(
        "List the batches of this API key.",
        response_schemas.a_page(response_schemas.BATCH),
        statuses=(404, 503),
        parameters=PAGE_LIMITS.parameters,
    ),
)
async def batches(http: HttpRequest) -> Response:
    """Reply with a page of batches, the newest first."""
    return await list_objects(http, PAGE_LIMITS)


@router.api_route(
    "/v1/batches/{batch_id}",
    methods=READ,
    **describe("Describe one batch.", response_schemas.BATCH, statuses=(404, 503), parameters=(BATCH_ID,)),
)
async def batch(http: HttpRequest, batch_id: str) -> Response:
    """Reply with a batch and the counts of this moment."""
    access, owner = access_of(http)
    item = await asyncio.to_thread(access.store.get, "batches", owner, batch_id)
    return JSONResponse(access.service.with_counts(found(item, "batches", "batch_id")))


@router.post(
    "/v1/batches/{batch_id}/cancel",
    **describe("Cancel one batch.", response_schemas.BATCH, statuses=(404, 503, 507), parameters=(BATCH_ID,)),
)
async def cancel(http: HttpRequest, batch_id: str) -> Response:
    """Stop a batch. Answers that it has already become its output file."""
    access, owner = access_of(http)
    item = found(await asyncio.to_thread(access.store.get, "batches", owner, batch_id), "batches", "batch_id")
    changes = {"status": "cancelling", "cancelling_at": int(access.store.clock())}
    stoppable = ("validating", "in_progress")
    item = await asyncio.to_thread(access.store.update_batch, item["id"], stoppable, changes)
    if item["status"] not in ("cancelling", "cancelled"):
        raise ApiError("This batch has ended or is about to.", param="batch_id", code="batch_ended")
    access.service.stop(batch_id)
    return JSONResponse(access.service.with_counts(item))
