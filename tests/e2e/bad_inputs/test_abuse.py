"""Abuse by one client makes others slower but never wrong: bad requests, prompts that flush the prefix cache."""

import asyncio
import itertools
import random
from typing import Any

import httpx

from tests.e2e.bad_inputs import ROWS
from tests.e2e.bad_inputs.rows import GENERATING, bodies
from tests.support.conditions import until
from tests.support.servers.running import MODEL, RunningServer, forked_server

NUMERICS = ("--dtype", "float32", "--threads", "1")
Answers = list[dict[str, Any]]


def good_bodies(rng: random.Random, count: int) -> list[dict[str, Any]]:
    """Return sampled requests with prompts of several blocks."""
    return [
        {
            "model": MODEL,
            "prompt": [rng.randrange(300, 3000) for _ in range(rng.randint(1, 60))],
            "max_tokens": rng.randint(4, 24),
            "seed": rng.randrange(2**31),
            "logprobs": 3,
        }
        for _ in range(count)
    ]


async def ask_all(server: RunningServer, requests: list[dict[str, Any]], *, clients: int, key: str = "") -> Answers:
    """Return choices and usage of each request, sent by `clients` clients."""
    queue, answers = iter(list(enumerate(requests))), dict[int, dict[str, Any]]()
    headers = {"Authorization": f"Bearer {key}"} if key else {}

    async def work(client: httpx.AsyncClient) -> None:
        for index, body in queue:
            reply = await client.post("/v1/completions", json=body)
            assert reply.status_code == 200, reply.text
            answers[index] = {name: reply.json()[name] for name in ("choices", "usage")}

    async with httpx.AsyncClient(base_url=server.url, timeout=120, headers=headers) as client:
        await asyncio.gather(*(work(client) for _ in range(clients)))
    return [answers[index] for index in range(len(requests))]


def test_good_requests_get_the_same_answers_while_as_many_bad_ones_are_sent(scale: int) -> None:
    """The bad requests are those of tests/e2e/bad_inputs, repeated."""
    rng = random.Random(101)
    requests = good_bodies(rng, 60 * scale)
    wrong = [
        (endpoint.path, body)
        for row in ROWS.values()
        for endpoint in row.endpoints
        if endpoint in GENERATING
        for change, _, _ in row.cases
        for body in bodies(endpoint, change)
        if len(str(body)) < 10_000
    ]
    rng.shuffle(wrong)

    async def abuse(server: RunningServer, enough: asyncio.Event) -> int:
        count = 0
        async with httpx.AsyncClient(base_url=server.url, timeout=120) as client:
            for path, body in itertools.cycle(wrong):
                if enough.is_set() and count >= len(requests):
                    return count
                assert 400 <= (await client.post(path, json=body)).status_code < 500
                count += 1
        raise AssertionError

    async def both(server: RunningServer) -> Answers:
        enough = asyncio.Event()
        abuser = asyncio.create_task(abuse(server, enough))
        answers = await ask_all(server, requests, clients=4)
        enough.set()
        assert await abuser >= len(requests)
        return answers

    with forked_server(*NUMERICS, "--no-enable-prefix-caching") as server:
        alone = asyncio.run(ask_all(server, requests, clients=1))
        assert asyncio.run(both(server)) == alone
        server.settled_metrics()


def test_one_keys_flood_of_prompts_flushes_the_prefix_cache_but_changes_no_answer_of_another(scale: int) -> None:
    """The KV pool holds a few prompts; the shared prefix of the victim is evicted again and again."""
    rng = random.Random(103)
    shared = [rng.randrange(300, 3000) for _ in range(100)]
    requests = [body | {"prompt": shared + body["prompt"]} for body in good_bodies(rng, 15 * scale)]
    flags = ("--num-kv-blocks", "48", "--max-model-len", "512", "--api-key", "victim", "--api-key", "flood")

    num_floods = 0

    async def flood(server: RunningServer, enough: asyncio.Event) -> None:
        nonlocal num_floods
        headers = {"Authorization": "Bearer flood"}
        async with httpx.AsyncClient(base_url=server.url, timeout=120, headers=headers) as client:
            while not enough.is_set():
                prompt = [rng.randrange(300, 3000) for _ in range(400)]
                reply = await client.post("/v1/completions", json={"model": MODEL, "prompt": prompt, "max_tokens": 1})
                assert reply.status_code == 200, reply.text
                num_floods += 1

    async def both(server: RunningServer) -> Answers:
        enough = asyncio.Event()
        flooding = [asyncio.create_task(flood(server, enough)) for _ in range(2)]
        answers: Answers = []
        for request in requests:
            answers += await ask_all(server, [request], clients=1, key="victim")
            goal = num_floods + 4  # prompts of twice as many blocks as there are
            await until(lambda goal=goal: num_floods >= goal)
        enough.set()
        await asyncio.gather(*flooding)
        return answers

    with forked_server(*NUMERICS, *flags) as server:
        alone = asyncio.run(ask_all(server, requests, clients=1, key="victim"))
        flooded = asyncio.run(both(server))
    assert [answer["choices"] for answer in flooded] == [answer["choices"] for answer in alone]
    assert num_cached(flooded) < num_cached(alone), "nothing was evicted"


def num_cached(answers: Answers) -> int:
    return sum(answer["usage"]["prompt_tokens_details"]["cached_tokens"] for answer in answers)
