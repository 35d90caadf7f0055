"""The app with a fake engine: in-process for most tests, on a loopback port for tests of connections."""

import asyncio
import contextlib
import json
import socket
import tempfile
from collections.abc import AsyncIterator, Callable, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import httpx
from fastapi import FastAPI
from starlette.types import ASGIApp

from engine.types import Request
from server.api import playground_files
from server.api.app import create_app
from server.api.routes.files import UPLOAD_PATHS
from server.chat.template import ChatTemplate
from server.generation.generation_defaults import GenerationDefaults
from server.generation.state import ServerState, TextFrontend
from server.http.bounded_reads import BoundedReadProtocol
from server.http.connections import Connections
from server.http.limits.read_limiter import MAX_BODY_READS, ReadLimiter
from server.http.listener import BACKLOG
from server.http.load_shedding import LoadShedding
from server.http.middleware import with_middleware
from server.http.tenant_of_head import tenant_finder
from server.http.uvicorn_server import HttpServer
from server.observability.access_log import AccessLog
from server.observability.metrics import Metrics
from server.settings.sources import load_settings
from server.tokenizer.tokenizer import Tokenizer
from tests.support.checkpoints.mistral_tokenizers import v1_tokenizer
from tests.support.servers.fake_engine import EOS, FakeEngine
from tests.support.servers.inline_sandbox import InlineSandbox
from tests.support.tls import CERTIFICATE, KEY

MODEL = "test/model"
FLUSH_S = 60.0  # a server waits at the end until its last responses are sent
TLS_FILES = {"ssl_certfile": str(CERTIFICATE), "ssl_keyfile": str(KEY)}


@cache
def tokenizer() -> Tokenizer:
    """Return Mixtral's tokenizer."""
    with tempfile.TemporaryDirectory() as folder:
        return v1_tokenizer(Path(folder))


@cache
def chat_template() -> ChatTemplate:
    """Return Mixtral's chat template. All servers of a run of tests share one: a rendering leaves nothing in it."""
    return ChatTemplate(None, tokenizer())


def saying(text: str) -> Callable[[Request], Sequence[int]]:
    """Return the script of an engine that answers every request with the same text."""
    ids = [*tokenizer().encode(text, add_special_tokens=False), EOS]
    return lambda request: ids


def state_around(engine: FakeEngine, *, max_num_queued: int = 1024) -> ServerState:
    return ServerState(
        engine=engine,
        metrics=Metrics(MODEL),
        model_names=(MODEL, "alias"),
        max_num_queued=max_num_queued,
        version="0",
        created_s=1,
        texts=TextFrontend(tokenizer(), chat_template(), GenerationDefaults(), InlineSandbox()),
    )


def app_around(
    state: ServerState,
    connections: Connections | None = None,
    *,
    api_keys: Sequence[str] = (),
    root_path: str = "",
    access_log: AccessLog | None = None,
    app: FastAPI | None = None,
    max_upload_bytes: int = 0,
) -> ASGIApp:
    connections = Connections() if connections is None else connections
    return with_middleware(
        app or create_app(state),
        api_keys=api_keys,
        open_paths=playground_files.open_paths(),
        metrics_auth=False,
        max_body_bytes=1 << 20,
        upload_paths=UPLOAD_PATHS if max_upload_bytes else frozenset(),
        max_upload_bytes=max_upload_bytes,
        allowed_origins=(),
        root_path=root_path,
        on_http=state.metrics.http,
        access_log=access_log,
        outermost=lambda app: LoadShedding(app, connections, state.memory, root_path),
    )


def client_of(state: ServerState, **settings: Any) -> httpx.AsyncClient:
    """Return a client that calls the app without a socket. Exceptions in the app become responses, as over a socket.

    `settings`: of app_around().
    """
    transport = httpx.ASGITransport(app_around(state, **settings), raise_app_exceptions=False)
    return httpx.AsyncClient(transport=transport, base_url="http://smoe")


@contextlib.asynccontextmanager
async def listening(
    state: ServerState,
    *,
    send_buffer_bytes: int | None = None,
    connections: Connections | None = None,
    read_limiter: ReadLimiter | None = None,
    body_limiter: ReadLimiter | None = None,
    api_keys: Sequence[str] = (),
    tls: bool = False,
) -> AsyncIterator[str]:
    """Serve the app on a free loopback port and yield its URL. `send_buffer_bytes`: size of the system's buffer.
    `api_keys`: reads take turns by them; they are not checked.

    With `tls` by HTTPS with the certificate of tests/support/tls/.
    """
    connections = Connections() if connections is None else connections
    turns = read_limiter or ReadLimiter()
    with socket.create_server(("127.0.0.1", 0), backlog=BACKLOG) as listener:
        if send_buffer_bytes is not None:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer_bytes)
        protocol = partial(
            BoundedReadProtocol,
            on_http=state.metrics.http,
            connections=connections,
            read_limiter=turns,
            body_limiter=body_limiter or ReadLimiter(MAX_BODY_READS),
            tenant_of=tenant_finder(api_keys),
        )
        settings = load_settings(TLS_FILES if tls else {})
        server = HttpServer(app_around(state, connections), protocol, settings, read_limiter=turns, flush_s=FLUSH_S)
        task = asyncio.create_task(server.serve([listener]))
        yield f"{'https' if tls else 'http'}://127.0.0.1:{listener.getsockname()[1]}"
        server.should_exit = True
        await task


def events(body: str) -> list[dict[str, Any]]:
    """Return the JSON events of a stream; check that it has only data lines and ends with [DONE]."""
    lines = [line for line in body.split("\n\n") if line and not line.startswith(":")]
    assert all(line.startswith("data: ") for line in lines)
    assert lines[-1] == "data: [DONE]"
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]


def outcomes(state: ServerState) -> dict[str, float]:
    """Return the numbers of choices by outcome, and of those received."""
    counts: dict[str, float] = {}
    for family in state.metrics.exposition.collect():
        for sample in family.samples:
            if sample.name == "smoe_requests_total" and sample.value:
                counts[sample.labels["outcome"]] = sample.value
            if sample.name == "smoe_requests_received_total":
                counts["received"] = sample.value
    return counts


def http_counts(state: ServerState) -> dict[tuple[str, str, str], float]:
    """Return the numbers of responses by route template, method and status."""
    samples = [sample for family in state.metrics.exposition.collect() for sample in family.samples]
    answers = [sample for sample in samples if sample.name == "smoe_http_requests_total"]
    return {(s.labels["route"], s.labels["method"], s.labels["status"]): s.value for s in answers}


def check_error(response: Any, status: int, code: str, param: str | None = None) -> None:
    """Assert that a reply is an error in OpenAI's format."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    assert response.headers["x-request-id"]
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert (error["code"], error["param"]) == (code, param)
