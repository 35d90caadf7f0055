"""Many streams at once over HTTP: they run in one batch, keep their tokens and free every block."""

import asyncio
import json
import random

import httpx
import pytest

from tests.support.conditions import POLL_S
from tests.support.servers.running import MODEL, RunningServer, Samples

Body = dict[str, object]


def random_body(rng: random.Random) -> Body:
    length = rng.choice([rng.randint(1, 40), rng.randint(40, 800)])
    return {
        "model": MODEL,
        "prompt": [1, *(rng.randrange(300, 3000) for _ in range(length - 1))],
        "max_tokens": rng.choice([rng.randint(1, 30), *(rng.randint(140, 200) for _ in range(3))]),
        "temperature": rng.choice([0, 0.7]),
        "seed": rng.randrange(2**62),
        "ignore_eos": True,
        "return_token_ids": True,
    }


async def stream(client: httpx.AsyncClient, body: Body) -> list[int]:
    tokens: list[int] = []
    async with client.stream("POST", "/v1/completions", json={**body, "stream": True}) as reply:
        assert reply.status_code == 200
        last = ""
        async for line in reply.aiter_lines():
            if line.startswith("data: {"):
                event = json.loads(line.removeprefix("data: "))
                assert "error" not in event
                for choice in event["choices"]:
                    tokens += choice["token_ids"]
            last = line or last
        assert last == "data: [DONE]"
    return tokens


async def all_streams(server: RunningServer, bodies: list[Body]) -> list[list[int]]:
    """Return the tokens of each stream. The engine is stopped until it has all requests, so that they run together."""
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=server.url, timeout=300, limits=limits) as client:
        with server.engine_stopped():
            tasks = [asyncio.create_task(stream(client, body)) for body in bodies]
            while (await client.get("/load")).json()["waiting"] < len(bodies):
                assert not any(task.done() for task in tasks)
        return await asyncio.gather(*tasks)


def test_concurrent_streams_equal_their_solo_runs_and_leave_no_block_behind(server: RunningServer, scale: int) -> None:
    rng = random.Random(3)
    bodies = [random_body(rng) for _ in range(24 if scale == 1 else 64)]
    before = server.settled_metrics()
    streamed = asyncio.run(all_streams(server, bodies))
    after = server.settled_metrics()
    tokens, steps = (
        after[f"smoe_step_tokens_{part}", ()] - before[f"smoe_step_tokens_{part}", ()] for part in ("sum", "count")
    )
    assert sum(map(len, streamed)) / steps > len(bodies) / 2, "a mean step gives a token to at most half of the streams"
    assert tokens / steps > 16
    for body, tokens in list(zip(bodies, streamed, strict=True))[:: 4 if scale == 1 else 1]:
        alone = server.post("/v1/completions", body).json()["choices"][0]["token_ids"]
        assert tokens == alone
        assert len(tokens) == body["max_tokens"]
    server.settled_metrics()


@pytest.mark.parametrize("streamed", [True, False])
def test_the_work_of_a_client_that_disconnects_ends(server: RunningServer, streamed: bool) -> None:
    aborted, computed = ("smoe_requests_total", (("outcome", "abort"),)), ("smoe_step_tokens_sum", ())
    before = server.settled_metrics()
    body: Body = {
        "model": MODEL,
        "prompt": [[1, 5], [1, 6], [1, 7], [1, 8]],
        "n": 8,
        "max_tokens": 2000,  # 64,000 in all: more than a fast machine computes before the client disconnects
        "ignore_eos": True,
        "return_token_ids": True,
    }

    async def leave() -> Samples:
        """Disconnect while the engine is stopped; return the counters after the server has noticed."""
        async with httpx.AsyncClient(base_url=server.url) as client:
            task = asyncio.create_task(stream(client, body) if streamed else client.post("/v1/completions", json=body))
            while (await client.get("/load")).json()["running"] == 0:
                assert not task.done()
            with server.engine_stopped():
                assert not task.done()
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
                while True:
                    then = server.metrics()
                    if then[aborted] != before[aborted]:
                        return then
                    await asyncio.sleep(POLL_S)

    then = asyncio.run(leave())
    after = server.settled_metrics()
    assert then[aborted] == after[aborted] == before[aborted] + 32
    assert after[computed] <= then[computed] + 2 * 32, "the engine kept computing for a client that had disconnected"
