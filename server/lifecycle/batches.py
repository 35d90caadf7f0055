"""Files and batches of a server that was started with --batch-dir."""

import contextlib
import sqlite3
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from fastapi import FastAPI

from server.api.batch_access import open_batches
from server.batch.app_sender import app_sender
from server.batch.service import BatchService
from server.batch.store import DATABASE_NAME, Store
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
    with _faults_in_one_line(settings.batch_dir):
        access = open_batches(
            settings.batch_dir,
            settings.api_keys,
            lambda tenant: app_sender(inner, tenant, by_priority=state.by_priority),
            max_num_queued=settings.max_num_queued_reqs,
            retention_days=settings.batch_retention_days,
            max_line_bytes=settings.max_body_bytes,
        )
    app.state.batches = access
    return access.service


def check_batch_dir(folder: Path) -> None:
    """Open the folder of --batch-dir as a server does; leave no files in it. Raises StartError."""
    with _faults_in_one_line(folder):
        if (folder / DATABASE_NAME).exists():
            Store(folder).close()
            return
        existing = next(place for place in (folder, *folder.absolute().parents) if place.exists())
        with tempfile.TemporaryDirectory(prefix=".smoe-", dir=existing) as tried:
            Store(Path(tried)).close()


@contextlib.contextmanager
def _faults_in_one_line(folder: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, sqlite3.Error) as error:
        raise StartError(f"--batch-dir {folder}: {getattr(error, 'strerror', None) or error}") from None
