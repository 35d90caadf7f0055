"""Every operation has an example that the server accepts, and calls in curl and Python that do what they show."""

import asyncio
import contextlib
import io
import json
import shlex
from typing import Any

import pytest

from server.api.app import ROUTES
from server.api.openapi import Facts, document, snippets
from server.generation.state import LoraOptions
from server.schemas import CreateBatchRequest
from server.schemas.validation import unknown_fields, validate
from tests.support.embedding_requests import embedding_engine
from tests.support.servers.fake_engine import FakeEngine
from tests.support.servers.serving import MODEL, client_of, listening, saying, state_around

pytestmark = pytest.mark.anyio

PATHS = document(ROUTES, Facts((MODEL,)), "1")["paths"]
BODIES: dict[str, dict[str, Any]] = {
    path: methods["post"]["requestBody"]["content"]["application/json"]["example"]
    for path, methods in PATHS.items()
    if "application/json" in methods.get("post", {}).get("requestBody", {}).get("content", {})
}
EMBEDDED = ("/v1/embeddings", "/v1/score", "/v1/rerank", "/api/embed", "/api/embeddings")
BATCHES = "/v1/batches"  # needs --batch-dir and an uploaded file
LOAD, UNLOAD = "/v1/load_lora_adapter", "/v1/unload_lora_adapter"
URL = "http://127.0.0.1:8000"


def engine_for(path: str) -> FakeEngine:
    return embedding_engine() if path in EMBEDDED else FakeEngine(saying("three four"))


@pytest.mark.parametrize("path", sorted(BODIES.keys() - {BATCHES}))
async def test_the_server_accepts_the_example_of_a_body(path: str) -> None:
    state = state_around(engine_for(path))
    state.lora = LoraOptions(at_run_time=True)
    async with client_of(state) as client:
        if path == UNLOAD:
            await client.post(LOAD, json=BODIES[LOAD])
        reply = await client.post(path, json=BODIES[path])
    assert reply.status_code == 200, reply.text
    assert "x-smoe-ignored-params" not in reply.headers


def test_the_example_of_a_batch_is_a_valid_request() -> None:
    assert validate(CreateBatchRequest, BODIES[BATCHES]).endpoint == "/v1/chat/completions"
    assert unknown_fields(CreateBatchRequest, BODIES[BATCHES]) == []


def test_every_parameter_of_a_url_has_an_example_that_its_schema_allows() -> None:
    given = [
        one for methods in PATHS.values() for operation in methods.values() for one in operation.get("parameters", ())
    ]
    assert given
    for parameter in given:
        allowed = parameter["schema"].get("enum")
        assert allowed is None or parameter["example"] in allowed, parameter
        assert parameter["example"] is not None


@pytest.mark.parametrize("path", sorted(BODIES))
def test_the_shell_reads_the_curl_command_as_it_is_meant(path: str) -> None:
    words = shlex.split(snippets.curl("POST", URL, path, BODIES[path]))
    assert words[:2] == ["curl", URL + path]
    assert json.loads(words[words.index("-d") + 1]) == BODIES[path]


def test_commands_without_a_body() -> None:
    assert snippets.curl("GET", URL, "/health", None) == f"curl {URL}/health"
    assert snippets.curl("DELETE", URL, "/v1/files/a", None) == f"curl -X DELETE {URL}/v1/files/a"
    assert "-F file=@questions.jsonl" in snippets.curl("POST", URL, "/v1/files", None)
    assert 'files={"file"' in snippets.python("POST", URL, "/v1/files", None)
    assert snippets.python("GET", URL, "/metrics", None, is_json=False).endswith("print(reply.text)")


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/tokenize"])
async def test_the_python_program_runs_and_prints_the_reply(path: str) -> None:
    async with listening(state_around(engine_for(path))) as url:
        printed = await asyncio.to_thread(run, snippets.python("POST", url, path, BODIES[path]))
    part = {"/v1/embeddings": "embedding=", "/tokenize": "'tokens':"}.get(path, "three four")
    assert part in printed


def run(program: str) -> str:
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        exec(compile(program, "example", "exec"), {})
    return output.getvalue()
