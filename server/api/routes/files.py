"""/v1/files: the input and the results of batches, in OpenAI's format. Needs --batch-dir."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request as HttpRequest
from starlette.responses import FileResponse, JSONResponse, Response

from server.api.batch_access import BatchAccess, PageLimits, StorageRoute, access_of, found, list_objects
from server.api.multipart import Part, read_form
from server.api.openapi import response_schemas
from server.api.openapi.operations import Schema, describe
from server.api.routes import READ
from server.batch.store import Store, Upload
from server.errors import (
    ApiError,
    invalid_value,
    object_not_found,
    too_many_uploads,
    unsupported_content_encoding,
)
from server.http.disconnect import ClientDisconnected

UPLOAD_PATHS = frozenset({"/v1/files"})  # whose bodies the app reads itself
WRITTEN_BYTES = 256 << 10  # of an upload at a time
MAX_UPLOADS = 4  # of one API key at a time
MAX_FILES = 1000  # of one API key
MAX_STORED_BYTES = 1 << 30  # of one API key; results may exceed it, then nothing more can be uploaded
MAX_NAME_CHARS = 255
# OpenAI's limits; bounded by what a key may store.
PAGE_LIMITS = PageLimits("files", limit=10_000, max_limit=10_000, purposes=("batch", "batch_output"))
FILE_ID: Schema = {"name": "file_id", "in": "path", "required": True, "schema": {"type": "string"}}
FORM: Schema = {
    "type": "object",
    "required": ["file", "purpose"],
    "properties": {"file": {"type": "string", "format": "binary"}, "purpose": {"enum": ["batch"]}},
}

router = APIRouter(route_class=StorageRoute)


def _describe_upload() -> dict[str, Any]:
    described = describe("Upload the requests of a batch.", response_schemas.FILE, statuses=(404, 415, 429, 503, 507))
    body = {"required": True, "content": {"multipart/form-data": {"schema": FORM}}}
    return described | {"openapi_extra": {"requestBody": body}}


@router.post("/v1/files", **_describe_upload())
async def upload(http: HttpRequest) -> Response:
    """Store a file, at most as long as --max-batch-file-bytes allows: it is written while it arrives."""
    access, owner = access_of(http)
    if http.headers.get("content-encoding", "identity").strip().lower() != "identity":
        raise unsupported_content_encoding()
    with _counted(access, owner):
        upload = await asyncio.to_thread(access.store.new_upload)
        try:
            filename = await _receive(http, access.store, owner, upload)
            return JSONResponse(await asyncio.to_thread(access.store.add_file, owner, filename, upload))
        finally:
            await asyncio.to_thread(upload.discard)


@contextmanager
def _counted(access: BatchAccess, owner: str) -> Iterator[None]:
    """Count an upload while it lasts: what has arrived takes room on the disk. Raises ApiError 429 for one too many."""
    if access.num_uploads[owner] >= MAX_UPLOADS:
        raise too_many_uploads(MAX_UPLOADS)
    access.num_uploads[owner] += 1
    try:
        yield
    finally:
        access.num_uploads[owner] -= 1


async def _receive(http: HttpRequest, store: Store, owner: str, upload: Upload) -> str:
    """Write the form's file as it arrives, and return its name. Raises ApiError 400."""
    _check_room(*await asyncio.to_thread(store.usage, owner), 0)

    async def write(piece: bytes) -> None:
        await asyncio.to_thread(upload.write, piece)

    form = await read_form(http.headers.get("content-type", ""), _pieces(http), "file", write)
    filename = _filename(form, upload)
    _check_room(*await asyncio.to_thread(store.usage, owner), upload.num_bytes)
    return filename


def _check_room(num_files: int, num_bytes: int, num_more: int) -> None:
    if num_files >= MAX_FILES or num_bytes + num_more > MAX_STORED_BYTES:
        message = f"An API key may store {MAX_FILES} files and {MAX_STORED_BYTES} bytes; delete some files."
        raise ApiError(message, code="storage_full")


async def _pieces(http: HttpRequest) -> AsyncIterator[bytes]:
    """Yield the body, joined to pieces that are worth a write. Raises ClientDisconnected."""
    joined, more = bytearray(), True
    while more:
        message = await http.receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnected
        joined += message.get("body", b"")
        more = message.get("more_body", False)
        if len(joined) >= WRITTEN_BYTES or not more:
            yield bytes(joined)
            joined.clear()


def _filename(form: dict[str, Part], upload: Upload) -> str:
    """Return the name of a form's file. Raises ApiError 400."""
    for name in ("file", "purpose"):
        if name not in form:
            raise ApiError(f"'{name}' is required.", param=name, code="missing_required_parameter")
    if form.keys() != {"file", "purpose"}:
        message = "A file has the fields 'file' and 'purpose' only; it stays until it is deleted."
        raise ApiError(message, code="unsupported_parameter")
    if form["purpose"].content != b"batch":
        raise invalid_value("'purpose' must be batch.", "purpose")
    filename = form["file"].filename
    if not upload.num_bytes or not 1 <= len(filename) <= MAX_NAME_CHARS:
        raise invalid_value(f"'file' must have a content and a name of at most {MAX_NAME_CHARS} characters.", "file")
    return filename


@router.api_route(
    "/v1/files",
    methods=READ,
    **describe(
        "List the files of this API key.",
        response_schemas.a_page(response_schemas.FILE),
        statuses=(404, 503),
        parameters=PAGE_LIMITS.parameters,
    ),
)
async def files(http: HttpRequest) -> Response:
    """Reply with a page of files, the newest first unless `order` is asc."""
    return await list_objects(http, PAGE_LIMITS)


@router.api_route(
    "/v1/files/{file_id}",
    methods=READ,
    **describe("Describe one file.", response_schemas.FILE, statuses=(404, 503), parameters=(FILE_ID,)),
)
async def file(http: HttpRequest, file_id: str) -> Response:
    """Reply with one file's object."""
    access, owner = access_of(http)
    item = await asyncio.to_thread(access.store.get, "files", owner, file_id)
    return JSONResponse(found(item, "files", "file_id"))


@router.api_route(
    "/v1/files/{file_id}/content",
    methods=READ,
    **describe(
        "Return the content of one file.",
        {},
        statuses=(404, 503),
        content_type="application/octet-stream",
        parameters=(FILE_ID,),
    ),
)
async def content(http: HttpRequest, file_id: str) -> Response:
    """Reply with the bytes of a file."""
    access, owner = access_of(http)
    item = found(await asyncio.to_thread(access.store.get, "files", owner, file_id), "files", "file_id")
    path = access.store.content_path(item["id"])
    try:
        status = await asyncio.to_thread(path.stat)
    except FileNotFoundError:  # deleted since its row was read
        raise object_not_found("file", "file_id") from None
    return FileResponse(path, media_type="application/octet-stream", stat_result=status)


@router.delete(
    "/v1/files/{file_id}",
    **describe("Delete one file.", response_schemas.DELETED_FILE, statuses=(404, 503, 507), parameters=(FILE_ID,)),
)
async def delete(http: HttpRequest, file_id: str) -> Response:
    """Delete a file, unless a batch that has not ended reads it."""
    access, owner = access_of(http)
    item = found(await asyncio.to_thread(access.store.get, "files", owner, file_id), "files", "file_id")
    if not await asyncio.to_thread(access.store.delete_file, owner, item["id"]):
        raise ApiError("A batch that has not ended reads this file.", param="file_id", code="file_in_use")
    return JSONResponse({"id": item["id"], "object": "file", "deleted": True})
