"""An app with files and batches around a fake engine, in this process."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx

from server.api.app import create_app
from server.api.batch_access import open_batches
from server.batch.app_sender import app_sender
from server.fairness.request_memory import RequestMemory
from server.http.middleware import for_batches
from tests.support.conditions import until
from tests.support.servers.fake_engine import FakeEngine
from tests.support.servers.serving import MODEL, app_around, state_around

KEYS = ("first-key", "second-key")
RETENTION_DAYS = 2
MAX_LINE_BYTES = 4096
MAX_UPLOAD_BYTES = 3 << 20


class BatchServer:
    """An app with files and batches. `clients`: one for each of KEYS."""

    def __init__(self, folder: Path, engine: FakeEngine) -> None:
        self.engine = engine
        self.state = state = state_around(engine)
        app = create_app(state)
        inner = for_batches(
            app, max_body_bytes=1 << 20, request_memory=RequestMemory(1 << 30), on_http=state.metrics.http
        )
        self.access = open_batches(
            folder,
            KEYS,
            lambda tenant: app_sender(inner, tenant, by_priority=True),
            max_num_queued=1024,
            retention_days=RETENTION_DAYS,
            max_line_bytes=MAX_LINE_BYTES,
        )
        app.state.batches = self.access
        limited = app_around(state, api_keys=KEYS, app=app, max_upload_bytes=MAX_UPLOAD_BYTES)
        transport = httpx.ASGITransport(limited, raise_app_exceptions=False)
        self.clients = [
            httpx.AsyncClient(transport=transport, base_url="http://smoe", headers={"authorization": f"Bearer {key}"})
            for key in KEYS
        ]

    async def start(self, lines: list[bytes], **changes: Any) -> str:
        """Upload lines as the first tenant and return the id of their batch."""
        uploaded = await upload(self.clients[0], b"\n".join(lines))
        body = {"input_file_id": uploaded.json()["id"], "endpoint": "/v1/completions", "completion_window": "24h"}
        created = await self.clients[0].post("/v1/batches", json=body | changes)
        assert created.status_code == 200, created.text
        return str(created.json()["id"])

    async def batch(self, batch_id: str) -> dict[str, Any]:
        found: dict[str, Any] = (await self.clients[0].get(f"/v1/batches/{batch_id}")).json()
        return found

    async def ended(self, batch_id: str, status: str) -> dict[str, Any]:
        """Return the batch as soon as it has the status."""
        store = self.access.store
        await until(lambda: (store.get("batches", self.access.owners[0], batch_id) or {})["status"] == status)
        return await self.batch(batch_id)

    async def results(self, file_id: str) -> dict[str, dict[str, Any]]:
        text = (await self.clients[0].get(f"/v1/files/{file_id}/content")).text
        lines = [json.loads(line) for line in text.splitlines()]
        assert len({line["custom_id"] for line in lines}) == len(lines)
        return {line["custom_id"]: line for line in lines}

    async def listed(self, purpose: str) -> set[str]:
        """Return the ids of the files with this purpose."""
        files = (await self.clients[0].get("/v1/files", params={"purpose": purpose})).json()["data"]
        return {file["id"] for file in files}


@asynccontextmanager
async def running(server: BatchServer) -> AsyncIterator[None]:
    """Run batches inside this block."""
    task = asyncio.create_task(server.access.service.run())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def upload(client: httpx.AsyncClient, content: bytes, purpose: str = "batch") -> httpx.Response:
    return await client.post("/v1/files", files={"file": ("in.jsonl", content)}, data={"purpose": purpose})


def line(name: str, url: str = "/v1/completions", **body: Any) -> bytes:
    fields = {"custom_id": name, "method": "POST", "url": url, "body": {"model": MODEL, "prompt": name, **body}}
    return json.dumps(fields).encode()
