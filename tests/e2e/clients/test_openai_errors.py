"""Errors as the openai client handles them: its exception classes, its retries, its time-outs."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import openai
import pytest

from tests.support.servers.running import MODEL, RunningServer, forked_server

KEY = "a-key"
LONG: dict[str, Any] = {"model": MODEL, "prompt": "And", "max_tokens": 1500, "extra_body": {"ignore_eos": True}}
SHORT: dict[str, Any] = {"model": MODEL, "prompt": "And", "max_tokens": 2}


@pytest.fixture(scope="module")
def narrow() -> Iterator[RunningServer]:
    """Server that runs one request, lets one wait and refuses a third."""
    flags = ("--api-key", KEY, "--max-num-seqs", "1", "--max-num-queued-reqs", "1", "--threads", "1")
    with forked_server(*flags) as running:
        yield running


def _client(server: RunningServer, **options: Any) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=server.url + "/v1", **{"api_key": KEY, "max_retries": 0} | options)


@asynccontextmanager
async def _one_running(server: RunningServer, client: openai.AsyncOpenAI) -> AsyncIterator[None]:
    """Stop the engine in the middle of a request; on exit let it continue, and cancel the request."""
    while True:
        request = asyncio.create_task(client.completions.create(**LONG))
        while not request.done() and await _load(server) != (1, 0):
            pass
        with server.engine_stopped():
            await _load(server)  # queued behind the engine's earlier messages
            if await _load(server) == (1, 0):
                yield
                break
        await request  # the request ended before the engine stopped: try again
    request.cancel()
    await asyncio.gather(request, return_exceptions=True)


async def _load(server: RunningServer) -> tuple[int, int]:
    """Return the numbers of running and of waiting requests."""
    async with httpx.AsyncClient(headers={"Authorization": f"Bearer {KEY}"}) as client:
        load: dict[str, int] = (await client.get(server.url + "/load")).json()
        return load["running"], load["waiting"]


async def _settled(server: RunningServer, *, running: int, waiting: int) -> None:
    """Wait until the server has these numbers of requests."""
    async with asyncio.timeout(60):
        while await _load(server) != (running, waiting):
            pass


@pytest.mark.anyio
async def test_a_wrong_key_is_an_authentication_error(narrow: RunningServer) -> None:
    async with _client(narrow, api_key="another") as client:
        with pytest.raises(openai.AuthenticationError) as refused:
            await client.models.list()
    assert refused.value.code == "invalid_api_key"
    assert KEY not in str(refused.value)


@pytest.mark.anyio
async def test_a_full_queue_is_a_rate_limit_error_that_the_clients_retries_survive(narrow: RunningServer) -> None:
    refused_once = asyncio.Event()

    async def watch(response: Any) -> None:
        if response.status_code == 429:
            refused_once.set()

    watched = openai.DefaultAsyncHttpxClient(event_hooks={"response": [watch]})
    async with _client(narrow) as client, _client(narrow, max_retries=8, http_client=watched) as patient:
        async with _one_running(narrow, client):
            waiting = asyncio.create_task(client.completions.create(**SHORT))
            await _settled(narrow, running=1, waiting=1)
            with pytest.raises(openai.RateLimitError) as refused:
                await client.completions.create(**SHORT)
            assert 1 <= int(refused.value.response.headers["retry-after"]) <= 120
            retried = asyncio.create_task(patient.completions.create(**SHORT))
            await refused_once.wait()
        for taken in (waiting, retried):
            assert (await taken).choices[0].finish_reason == "length"


@pytest.mark.anyio
async def test_a_request_that_the_client_abandons_makes_room_for_the_next(narrow: RunningServer) -> None:
    async with _client(narrow) as client:
        with narrow.engine_stopped(), pytest.raises(openai.APITimeoutError):
            await client.with_options(timeout=0.3).completions.create(**LONG)
        await _settled(narrow, running=0, waiting=0)
        assert (await client.completions.create(**SHORT)).usage is not None
