"""Access of API keys to files and batches: each key sees its own."""

import asyncio
import errno
import hashlib
import logging
import sqlite3
from collections import Counter
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson
from fastapi.routing import APIRoute
from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from server.api.openapi.operations import Schema
from server.batch.runner import Send
from server.batch.service import BatchService
from server.batch.store import Object, Store, Table
from server.errors import ApiError, batches_disabled, invalid_value, object_not_found, overloaded
from server.generation.state import tenant_of
from server.http.sliced_response import SlicedResponse

log = logging.getLogger(__name__)

CONCURRENCY = 16  # requests of one batch at a time, and at most a quarter of the queue
DAY_S = 24 * 3600
BUSY_RETRY_S = 10.0
NO_ROOM = (errno.ENOSPC, errno.EDQUOT)


@dataclass(frozen=True)
class BatchAccess:
    """The batch service, and the owner of files and batches for each tenant."""

    service: BatchService
    owners: tuple[str, ...]  # by tenant
    num_uploads: Counter[str] = field(default_factory=Counter)  # that are arriving, by owner

    @property
    def store(self) -> Store:
        return self.service.store


def open_batches(
    folder: Path,
    api_keys: Sequence[str],
    send_for: Callable[[int], Send],
    *,
    max_num_queued: int,
    retention_days: float,
    max_line_bytes: int,
) -> BatchAccess:
    """Open the folder of --batch-dir. Raises OSError, sqlite3.Error.

    `max_line_bytes`: of a request in a file. An owner is a hash of its key: keys may be added and change their order
    between two starts.
    """
    owners = tuple(hashlib.sha256(key.encode()).hexdigest() for key in api_keys) or ("",)
    concurrency = min(CONCURRENCY, max(1, max_num_queued // 4))
    tenants = {owner: tenant for tenant, owner in enumerate(owners)}
    retention_s = retention_days * DAY_S
    service = BatchService(
        Store(folder),
        send_for,
        tenants,
        concurrency=concurrency,
        retention_s=retention_s,
        max_line_bytes=max_line_bytes,
    )
    return BatchAccess(service, owners)


def access_of(http: HttpRequest) -> tuple[BatchAccess, str]:
    """Return the server's batches and the owner whose request this is. Raises ApiError 404 without --batch-dir."""
    access: BatchAccess | None = http.app.state.batches
    if access is None:
        raise batches_disabled()
    return access, access.owners[tenant_of(http)]


def found(item: Object | None, table: Table, param: str) -> Object:
    """Return the object. Raises ApiError 404 if it is None."""
    if item is None:
        raise object_not_found("file" if table == "files" else "batch", param)
    return item


class StorageRoute(APIRoute):
    """Route that replies 507 if the disk is full, and 503 if another process has locked the database for long."""

    def get_route_handler(self) -> Callable[[HttpRequest], Coroutine[Any, Any, Response]]:
        """Return FastAPI's handler with these replies."""
        handle = super().get_route_handler()

        async def handle_or_refuse(http: HttpRequest) -> Response:
            try:
                return await handle(http)
            except (OSError, sqlite3.Error) as error:
                refusal = storage_error(error)
                if refusal is None:
                    raise
                log.error("%s %s: %s", http.method, self.path, error)
                raise refusal from error

        return handle_or_refuse


def disk_full() -> ApiError:
    """There is no room for files and batches; only the operator can make some, or a client that deletes files."""
    message = "The disk of the server's files is full; delete some files."
    headers = {"x-should-retry": "false"}
    return ApiError(message, status=507, type="server_error", code="insufficient_storage", headers=headers)


def storage_error(error: OSError | sqlite3.Error) -> ApiError | None:
    """Return what a client is told of an error of the disk or the database; None if it is a fault of the server."""
    if isinstance(error, OSError):
        return disk_full() if error.errno in NO_ROOM else None
    match getattr(error, "sqlite_errorcode", 0) & 0xFF:  # without the bits of an extended code
        case sqlite3.SQLITE_FULL:
            return disk_full()
        case sqlite3.SQLITE_BUSY:
            return overloaded(BUSY_RETRY_S)
    return None


@dataclass(frozen=True)
class PageLimits:
    """Objects in a page of a table: `limit` if the client names no number, and `max_limit` at most. `purposes`: of
    which a client may name one."""

    table: Table
    limit: int
    max_limit: int
    purposes: tuple[str, ...] = ()

    @property
    def parameters(self) -> tuple[Schema, ...]:
        """Parameters of the URL."""
        purpose: Schema = {"name": "purpose", "in": "query", "schema": {"enum": [*self.purposes]}}
        return (
            {"name": "limit", "in": "query", "schema": {"type": "integer", "minimum": 1, "maximum": self.max_limit}},
            {"name": "after", "in": "query", "schema": {"type": "string"}},
            {"name": "order", "in": "query", "schema": {"enum": ["asc", "desc"]}},
            *([purpose] if self.purposes else []),
        )


async def list_objects(http: HttpRequest, limits: PageLimits) -> Response:
    """Reply with a page of an owner's objects, which is read and rendered in a thread. Raises ApiError 400 or 404."""
    content = await asyncio.to_thread(lambda: orjson.dumps(_page(http, limits)))
    return SlicedResponse([content], {}, media_type="application/json")


def _page(http: HttpRequest, limits: PageLimits) -> dict[str, object]:
    access, owner = access_of(http)
    table = limits.table
    after, order = http.query_params.get("after"), http.query_params.get("order", "desc")
    limit = _limit(http.query_params.get("limit", str(limits.limit)), limits.max_limit)
    if order not in ("asc", "desc"):
        raise invalid_value("'order' must be asc or desc.", "order")
    if after is not None:
        found(access.store.get(table, owner, after), table, "after")
    purpose = http.query_params.get("purpose") if limits.purposes else None
    if purpose is not None and purpose not in limits.purposes:
        raise invalid_value(f"'purpose' must be {' or '.join(limits.purposes)}.", "purpose")
    items = access.store.page(table, owner, after, limit + 1, newest_first=order == "desc", purpose=purpose)
    page = [access.service.with_counts(item) for item in items[:limit]]
    return {
        "object": "list",
        "data": page,
        "first_id": page[0]["id"] if page else None,
        "last_id": page[-1]["id"] if page else None,
        "has_more": len(items) > limit,
    }


def _limit(text: str, highest: int) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) <= 5 and 1 <= int(text) <= highest):
        raise invalid_value(f"'limit' must be an integer from 1 to {highest}.", "limit")
    return int(text)
