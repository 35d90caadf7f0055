"""The product's HTTP server on a loopback port, for the API keys of two tenants."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from functools import partial

from server.api import playground_files
from server.api.app import create_app
from server.engine_client.client import EngineClient
from server.fairness.byte_budget import ByteBudget
from server.fairness.request_memory import RequestMemory
from server.generation.state import ServerState, TextFrontend
from server.http.bounded_reads import BoundedReadProtocol
from server.http.connections import Connections
from server.http.limits.read_limiter import MAX_BODY_READS, ReadLimiter
from server.http.listener import BACKLOG
from server.http.load_shedding import LoadShedding
from server.http.middleware import with_middleware
from server.http.tenant_of_head import tenant_finder
from server.http.uvicorn_server import HttpServer, RequestTracker
from server.observability.metrics import Metrics
from server.settings.settings import Settings
from tests.support.servers.running import MODEL

KEYS = ("key-of-a", "key-of-b")
MEMORY_BYTES = 64 << 20  # for bodies, and for parts of replies


def state_around(client: EngineClient, texts: TextFrontend) -> ServerState:
    return ServerState(
        engine=client,
        metrics=Metrics(MODEL),
        model_names=(MODEL,),
        max_num_queued=128,
        num_tenants=len(KEYS),
        reply_memory=ByteBudget(MEMORY_BYTES, len(KEYS)),
        version="0",
        created_s=1,
        texts=texts,
    )


@contextlib.asynccontextmanager
async def serving(state: ServerState) -> AsyncIterator[tuple[str, RequestTracker]]:
    """Serve on a free port; yield the URL and the count of requests that are being answered."""
    connections, turns = Connections(), ReadLimiter()
    app = with_middleware(
        create_app(state),
        api_keys=KEYS,
        open_paths=playground_files.open_paths(),
        metrics_auth=False,
        max_body_bytes=1 << 20,
        request_memory=RequestMemory(MEMORY_BYTES, len(KEYS)),
        allowed_origins=(),
        root_path="",
        on_http=state.metrics.http,
        outermost=lambda inner: LoadShedding(inner, connections, None),
    )
    in_flight = RequestTracker(app)
    protocol = partial(
        BoundedReadProtocol,
        on_http=state.metrics.http,
        connections=connections,
        read_limiter=turns,
        body_limiter=ReadLimiter(MAX_BODY_READS),
        tenant_of=tenant_finder(KEYS),
    )
    with socket.create_server(("127.0.0.1", 0), backlog=BACKLOG) as listener:
        server = HttpServer(in_flight, protocol, Settings(), read_limiter=turns, flush_s=5.0)
        task = asyncio.create_task(server.serve([listener]))
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}", in_flight
        finally:
            server.should_exit = True
            await task
