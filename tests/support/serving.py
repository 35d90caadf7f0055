"""The app around a fake engine: in-process for most tests, on a loopback port where connections matter."""

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
import uvicorn
from starlette.types import ASGIApp

from engine.types import Request
from server.api import playground_files
from server.api.app import create_app
from server.chat.template import ChatTemplate
from server.generation.sampling_params import GenerationDefaults
from server.generation.state import ServerState, TextFrontend
from server.http.connections import Connections
from server.http.load_shedding import LoadShedding
from server.http.middleware import with_middleware
from server.http.protocol import MAX_HEAD_BYTES, BoundedReadProtocol
from server.http.read_limiter import ReadLimiter
from server.observability.access_log import AccessLog
from server.observability.metrics import Metrics
from server.tokenizer.tokenizer import Tokenizer
from tests.support.fake_engine import EOS, FakeEngine
from tests.support.mistral_tokenizers import v1_tokenizer

MODEL = "test/model"


@cache
def tokenizer() -> Tokenizer:
    """Mixtral's own."""
    with tempfile.TemporaryDirectory() as folder:
        return v1_tokenizer(Path(folder))


def saying(text: str) -> Callable[[Request], Sequence[int]]:
    """The script of an engine that answers every request with the same text."""
    ids = [*tokenizer().encode(text, add_special_tokens=False), EOS]
    return lambda request: ids


def state_around(engine: FakeEngine, *, max_num_queued: int = 1024) -> ServerState:
    return ServerState(
        engine=engine,
        metrics=Metrics(MODEL),
        access_log=AccessLog(),
        model_names=(MODEL, "alias"),
        max_num_queued=max_num_queued,
        version="0",
        created_s=1,
        texts=TextFrontend(tokenizer(), ChatTemplate(None, tokenizer()), GenerationDefaults()),
    )


def app_around(state: ServerState, connections: Connections | None = None, *, api_keys: Sequence[str] = ()) -> ASGIApp:
    return with_middleware(
        create_app(state),
        api_keys=api_keys,
        open_paths=playground_files.open_paths(),
        metrics_auth=False,
        max_body_bytes=1 << 20,
        allowed_origins=(),
        root_path="",
        on_http=state.metrics.http,
        outermost=lambda app: LoadShedding(app, Connections() if connections is None else connections, state.memory),
    )


def client_of(state: ServerState) -> httpx.AsyncClient:
    """Calls the app without a socket. A fault in the app is answered, as it would be over one."""
    transport = httpx.ASGITransport(app_around(state), raise_app_exceptions=False)
    return httpx.AsyncClient(transport=transport, base_url="http://smoe")


@contextlib.asynccontextmanager
async def listening(
    state: ServerState,
    *,
    send_buffer_bytes: int | None = None,
    connections: Connections | None = None,
    read_limiter: ReadLimiter | None = None,
) -> AsyncIterator[str]:
    """Serves the app on a free loopback port; gives its URL. `send_buffer_bytes`: what the system buffers."""
    connections = Connections() if connections is None else connections
    with socket.create_server(("127.0.0.1", 0)) as listener:
        if send_buffer_bytes is not None:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer_bytes)
        config = uvicorn.Config(
            app_around(state, connections),
            http=partial(
                BoundedReadProtocol,
                on_http=state.metrics.http,
                connections=connections,
                read_limiter=read_limiter or ReadLimiter(),
            ),  # type: ignore[arg-type]
            h11_max_incomplete_event_size=MAX_HEAD_BYTES,
            lifespan="off",
            log_config=None,
        )
        server = uvicorn.Server(config)
        task = asyncio.create_task(server._serve([listener]))
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        server.should_exit = True
        await task


def events(body: str) -> list[dict[str, Any]]:
    """A stream's JSON events; checks that it is made of data lines and ends with [DONE]."""
    lines = [line for line in body.split("\n\n") if line and not line.startswith(":")]
    assert all(line.startswith("data: ") for line in lines)
    assert lines[-1] == "data: [DONE]"
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]


def outcomes(state: ServerState) -> dict[str, float]:
    """The ledger: choices received, and how many ended how."""
    ledger: dict[str, float] = {}
    for family in state.metrics.exposition.collect():
        for sample in family.samples:
            if sample.name == "smoe_requests_total" and sample.value:
                ledger[sample.labels["outcome"]] = sample.value
            if sample.name == "smoe_requests_received_total":
                ledger["received"] = sample.value
    return ledger


def http_counts(state: ServerState) -> dict[tuple[str, str, str], float]:
    """Answers by route template, method and status."""
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
