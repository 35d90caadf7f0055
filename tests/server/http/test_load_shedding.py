"""What is refused when too much is asked, and that it is refused and not lost."""

import asyncio
import contextlib
import itertools
import logging
from collections.abc import Callable
from functools import partial
from typing import Any

import httpx
import pytest

from server.http.read_limiter import ReadLimiter
from server.observability.log_rate_limit import MAX_KINDS, MAX_LINES, PERIOD_S, LogRateLimit
from server.observability.memory_pressure import MemoryMonitor
from tests.support.fake_engine import FakeEngine
from tests.support.serving import MODEL, app_around, client_of, http_counts, outcomes, saying, state_around

pytestmark = pytest.mark.anyio

COMPLETION = {"model": MODEL, "prompt": [5] * 100, "max_tokens": 4}


@contextlib.asynccontextmanager
async def asking(client: httpx.AsyncClient, engine: FakeEngine, count: int, **fields: object) -> Any:
    """So many requests are with the engine, which says nothing yet; in the end it answers them."""
    tasks = [asyncio.create_task(client.post("/v1/completions", json={**COMPLETION, **fields})) for _ in range(count)]
    await engine.until(lambda: len(engine.submitted) == count * int(str(fields.get("n", 1))))
    yield tasks
    while not all(task.done() for task in tasks):
        engine.step()
        await asyncio.sleep(0)


def refused(response: httpx.Response, status: int, code: str) -> None:
    assert (response.status_code, response.json()["error"]["code"]) == (status, code)
    assert 0 < int(response.headers["retry-after"]) <= 120


async def test_prompts_that_wait_are_bounded_by_their_tokens() -> None:
    engine = FakeEngine(saying("a"), held=True)
    state = state_around(engine)
    state.max_num_queued_tokens = 250
    async with client_of(state) as client:
        async with asking(client, engine, 3) as tasks:  # 200 were below the bound when the third came
            assert state.admission.num_tokens == 300
            refused(await client.post("/v1/completions", json=COMPLETION), 429, "queue_full")
        assert [task.result().status_code for task in tasks] == [200] * 3
        assert state.admission.num_tokens == 0
    assert outcomes(state) == {"received": 4, "stop": 3, "rejected": 1}


async def test_a_prompt_leaves_the_queue_with_its_first_token() -> None:
    engine = FakeEngine(saying("one two three"), held=True)
    state = state_around(engine)
    state.max_num_queued_tokens = 150
    async with client_of(state) as client, asking(client, engine, 2) as running:
        engine.step()
        for _ in range(20):  # turns of the loop: the readers hear of it
            await asyncio.sleep(0)
        assert state.admission.num_tokens == 0 and not running[0].done()
        late = asyncio.create_task(client.post("/v1/completions", json=COMPLETION))
        await engine.until(lambda: len(engine.submitted) == 3)
        running.append(late)


async def test_a_prompt_longer_than_the_bound_is_taken_when_nothing_much_waits() -> None:
    state = state_around(FakeEngine(saying("a")))
    state.max_num_queued_tokens = 10
    async with client_of(state) as client:
        assert (await client.post("/v1/completions", json=COMPLETION)).status_code == 200


@pytest.mark.parametrize("how", ["cancelled", "died"])
async def test_what_ends_unheard_leaves_the_queue_too(how: str) -> None:
    engine = FakeEngine(saying("a"), held=True)
    state = state_around(engine)
    async with client_of(state) as client:
        task = asyncio.create_task(client.post("/v1/completions", json=COMPLETION))
        await engine.until(lambda: bool(engine.submitted))
        assert state.admission.num_tokens == 100
        if how == "died":
            engine.fail("died")
        else:
            task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
    assert state.admission.num_tokens == 0


async def test_the_key_of_a_request_is_its_tenant() -> None:
    engine = FakeEngine(saying("a"))
    state = state_around(engine)
    transport = httpx.ASGITransport(app_around(state, api_keys=("one", "two")))
    async with httpx.AsyncClient(transport=transport, base_url="http://smoe") as client:
        for key in ("two", "one"):
            headers = {"authorization": f"Bearer {key}"}
            assert (await client.post("/v1/completions", json=COMPLETION, headers=headers)).status_code == 200
    async with client_of(state) as client:
        assert (await client.post("/v1/completions", json=COMPLETION)).status_code == 200
    assert [request.tenant for request in engine.submitted] == [1, 0, 0]


# Memory.


def watching(used: Callable[[], int], limit: int = 1000, static: int = 0) -> MemoryMonitor:
    watch = MemoryMonitor(limit, used)
    watch.settle(static)
    watch.measure()
    return watch


@pytest.mark.parametrize(
    ("used", "static", "level"),
    [
        (899, 0, "normal"),
        (901, 0, "high"),
        (951, 0, "critical"),
        (960, 960, "normal"),  # weights that nearly fill the memory are no pressure
        (981, 960, "high"),
        (991, 960, "critical"),
        (1500, 1500, "normal"),
    ],
)
def test_the_levels_count_from_the_limit_or_from_what_loading_left(used: int, static: int, level: str) -> None:
    held = [min(used, static)]
    watch = MemoryMonitor(1000, lambda: held[0])
    watch.settle(static)
    held[0] = used
    watch.measure()
    assert watch.level == level


async def test_short_of_memory_nothing_new_is_generated_and_everything_else_is_answered() -> None:
    held = [0]
    state = state_around(FakeEngine(saying("a")))
    state.memory = watching(lambda: held[0])
    async with client_of(state) as client:

        async def answers() -> tuple[int, str | None, int]:
            state.memory.measure()
            response = await client.post("/v1/completions", json=COMPLETION)
            if response.status_code == 503:
                refused(response, 503, "overloaded")
            health = await client.get("/health")
            return response.status_code, response.headers.get("connection"), health.status_code

        assert await answers() == (200, None, 200)
        held[0] = 920
        assert await answers() == (200, "close", 200)
        held[0] = 960
        assert await answers() == (503, "close", 200)
        held[0] = 100
        assert await answers() == (200, None, 200)
    assert outcomes(state) == {"received": 4, "stop": 3, "rejected": 1}


# Log lines.


def record(level: int = logging.ERROR, message: str = "a fault", **fields: object) -> logging.LogRecord:
    made = logging.LogRecord("smoe", level, "", 0, message, None, None)
    made.fields = fields
    return made


def test_lines_that_clients_cause_are_limited_and_the_rest_is_counted() -> None:
    now = [0.0]
    limit = LogRateLimit(lambda: now[0])
    assert sum(limit.filter(record()) for _ in range(10_000)) == MAX_LINES
    assert sum(limit.filter(record(logging.INFO, outcome="rejected")) for _ in range(10_000)) == MAX_LINES
    now[0] = PERIOD_S
    later = record()
    assert limit.filter(later) and later.fields == {"left_out_before": 10_000 - MAX_LINES}


def test_the_line_of_a_request_that_used_something_is_never_left_out() -> None:
    limit = LogRateLimit()
    assert all(limit.filter(record(logging.INFO, "request finished", outcome="abort")) for _ in range(10_000))


def test_kinds_of_lines_are_bounded() -> None:
    limit = LogRateLimit()
    passed = sum(limit.filter(record(message=f"fault {number}")) for number in range(10_000))
    assert passed == MAX_KINDS + MAX_LINES and len(limit._kinds) == MAX_KINDS + 1


async def test_paths_that_nobody_knows_make_no_series() -> None:
    state = state_around(FakeEngine(saying("a")))
    async with client_of(state) as client:
        for number in range(1000):
            assert (await client.request("BREW" if number % 2 else "GET", f"/nowhere/{number}")).status_code == 404
    assert http_counts(state) == {("other", "GET", "404"): 500, ("other", "other", "404"): 500}


async def test_a_scrape_is_rendered_once_a_second_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    state = state_around(FakeEngine(saying("a")))
    num_rendered = 0
    collect = type(state.metrics).collect

    def counted(metrics: Any) -> Any:
        nonlocal num_rendered
        num_rendered += 1
        return collect(metrics)

    monkeypatch.setattr(type(state.metrics), "collect", counted)
    now = [100.0]
    state.metrics._clock = lambda: now[0]
    async with client_of(state) as client:
        for tick in range(300):  # three seconds
            now[0] = 100 + tick / 100
            await client.get("/metrics")
    assert num_rendered == 3


# Crowds.


async def test_of_a_crowd_a_few_go_in_each_turn_of_the_loop_in_their_order() -> None:
    order: list[int] = []
    turns: list[int] = []
    crowd = ReadLimiter(max_reads=16)
    for number in range(100):
        if crowd.try_acquire():
            order.append(number)
        else:
            crowd.defer(partial(order.append, number))
    while len(order) < 100:
        turns.append(len(order))
        await asyncio.sleep(0)
    assert order == list(range(100))
    assert max(after - before for before, after in itertools.pairwise(turns)) == 16
    await asyncio.sleep(0)
    assert crowd.try_acquire()


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions", "/v1/responses", "/v1/messages"])
async def test_with_a_full_queue_a_request_is_refused_before_it_is_read(path: str) -> None:
    engine = FakeEngine(saying("a"))
    engine.num_waiting = 4
    state = state_around(engine, max_num_queued=4)
    async with client_of(state) as client:
        response = await client.post(path, content=b"{ no JSON", headers={"content-type": "application/json"})
        assert response.status_code == 429 and 0 < int(response.headers["retry-after"]) <= 120
        assert (await client.post("/tokenize", json={"model": MODEL, "prompt": "a"})).status_code == 200
    assert outcomes(state) == {"received": 1, "rejected": 1}
