"""Files and batches of a server that was started with --batch-dir."""

import sqlite3
from collections.abc import Callable

from fastapi import FastAPI

from server.api.batch_access import open_batches
from server.batch.app_sender import app_sender
from server.batch.service import BatchService
from server.fairness.request_memory import RequestMemory
from server.generation.state import ServerState
from server.http.middleware import for_batches
from server.lifecycle.errors import StartError
from server.observability.access_log import AccessLog
from server.settings.settings import Settings


def batch_service(
    app: FastAPI,
    state: ServerState,
    settings: Settings,
    *,
    request_memory: RequestMemory,
    on_http: Callable[[str, str, int], None],
    access_log: AccessLog,
) -> BatchService | None:
    """Enable files and batches on `app`; None without --batch-dir. Raises StartError."""
    if settings.batch_dir is None:
        return None
    inner = for_batches(
        app,
        max_body_bytes=settings.max_body_bytes,
        request_memory=request_memory,
        on_http=on_http,
        access_log=access_log,
    )
    try:
        access = open_batches(
            settings.batch_dir,
            settings.api_keys,
            lambda tenant: app_sender(inner, tenant, by_priority=state.by_priority),
            max_num_queued=settings.max_num_queued_reqs,
            retention_days=settings.batch_retention_days,
        )
    except (OSError, sqlite3.Error) as error:
        raise StartError(f"--batch-dir {settings.batch_dir}: {getattr(error, 'strerror', None) or error}") from None
    app.state.batches = access
    return access.service
