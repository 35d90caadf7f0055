"""/v1/files: the input and the results of batches, in OpenAI's format. Needs --batch-dir."""

import asyncio
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request as HttpRequest
from starlette.responses import FileResponse, JSONResponse, Response

from server.api.batch_access import LIST_PARAMETERS, access_of, found, list_objects
from server.api.multipart import Part, parse_multipart
from server.api.openapi import response_schemas
from server.api.openapi.operations import Schema, describe
from server.api.routes import READ
from server.errors import ApiError, invalid_value, unsupported_content_encoding

MAX_FILES = 1000  # of one API key
MAX_STORED_BYTES = 1 << 30  # of one API key; results may exceed it, then nothing more can be uploaded
MAX_NAME_CHARS = 255
DEFAULT_LIMIT = 10_000
FILE_ID: Schema = {"name": "file_id", "in": "path", "required": True, "schema": {"type": "string"}}
FORM: Schema = {
    "type": "object",
    "required": ["file", "purpose"],
    "properties": {"file": {"type": "string", "format": "binary"}, "purpose": {"enum": ["batch"]}},
}

router = APIRouter()


def _describe_upload() -> dict[str, Any]:
    described = describe("Upload the requests of a batch.", response_schemas.FILE, statuses=(404, 415, 503))
    body = {"required": True, "content": {"multipart/form-data": {"schema": FORM}}}
    return described | {"openapi_extra": {"requestBody": body}}


@router.post("/v1/files", **_describe_upload())
async def upload(http: HttpRequest) -> Response:
    """Store a file, at most as long as --max-body-bytes allows."""
    access, owner = access_of(http)
    if http.headers.get("content-encoding", "identity").strip().lower() != "identity":
        raise unsupported_content_encoding()
    form = parse_multipart(http.headers.get("content-type", ""), await http.body())
    file = _checked(form)
    num_files, num_bytes = await asyncio.to_thread(access.store.usage, owner)
    if num_files >= MAX_FILES or num_bytes + len(file.content) > MAX_STORED_BYTES:
        message = f"An API key may store {MAX_FILES} files and {MAX_STORED_BYTES} bytes; delete some files."
        raise ApiError(message, code="storage_full")
    stored = await asyncio.to_thread(access.store.add_file, owner, file.filename, file.content)
    return JSONResponse(stored)


def _checked(form: dict[str, Part]) -> Part:
    """Return the file of a form. Raises ApiError 400."""
    for name in ("file", "purpose"):
        if name not in form:
            raise ApiError(f"'{name}' is required.", param=name, code="missing_required_parameter")
    if form.keys() != {"file", "purpose"}:
        message = "A file has the fields 'file' and 'purpose' only; it stays until it is deleted."
        raise ApiError(message, code="unsupported_parameter")
    if form["purpose"].content != b"batch":
        raise invalid_value("'purpose' must be batch.", "purpose")
    file = form["file"]
    if not file.content or not 1 <= len(file.filename) <= MAX_NAME_CHARS:
        raise invalid_value(f"'file' must have a content and a name of at most {MAX_NAME_CHARS} characters.", "file")
    return file


@router.api_route(
    "/v1/files",
    methods=READ,
    **describe(
        "List the files of this API key.",
        response_schemas.a_page(response_schemas.FILE),
        statuses=(404,),
        parameters=LIST_PARAMETERS,
    ),
)
async def files(http: HttpRequest) -> Response:
    """Reply with a page of files, the newest first unless `order` is asc."""
    return JSONResponse(await asyncio.to_thread(list_objects, http, "files", DEFAULT_LIMIT))


@router.api_route(
    "/v1/files/{file_id}",
    methods=READ,
    **describe("Describe one file.", response_schemas.FILE, statuses=(404,), parameters=(FILE_ID,)),
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
        statuses=(404,),
        content_type="application/octet-stream",
        parameters=(FILE_ID,),
    ),
)
async def content(http: HttpRequest, file_id: str) -> Response:
    """Reply with the bytes of a file."""
    access, owner = access_of(http)
    item = found(await asyncio.to_thread(access.store.get, "files", owner, file_id), "files", "file_id")
    return FileResponse(access.store.content_path(item["id"]), media_type="application/octet-stream")


@router.delete(
    "/v1/files/{file_id}",
    **describe("Delete one file.", response_schemas.DELETED_FILE, statuses=(404,), parameters=(FILE_ID,)),
)
async def delete(http: HttpRequest, file_id: str) -> Response:
    """Delete a file, unless a batch that has not ended reads it."""
    access, owner = access_of(http)
    item = found(await asyncio.to_thread(access.store.get, "files", owner, file_id), "files", "file_id")
    if not await asyncio.to_thread(access.store.delete_file, owner, item["id"]):
        raise ApiError("A batch that has not ended reads this file.", param="file_id", code="file_in_use")
    return JSONResponse({"id": item["id"], "object": "file", "deleted": True})
