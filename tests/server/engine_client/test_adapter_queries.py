"""Adapters that are loaded and unloaded while requests run, without a process."""

import asyncio

import pytest

from engine.messages import AdapterLoaded, LoadAdapter, UnloadAdapter
from server.engine_client.adapter_queries import AdapterError, AdapterQueries
from server.engine_client.output_collector import EngineDied

pytestmark = pytest.mark.anyio


class Sent:
    """Queries over a list of messages, and the digests that requests have."""

    def __init__(self) -> None:
        self.messages: list[LoadAdapter | UnloadAdapter] = []
        self.used: set[str] = set()
        self.queries = AdapterQueries(self.messages.append, lambda digest: digest in self.used)


async def test_the_engines_answer_ends_the_wait() -> None:
    sent = Sent()
    first, second = sent.queries.load("sql", "/sql"), sent.queries.load("poems", "/poems")
    assert sent.messages == [LoadAdapter(1, "sql", "/sql"), LoadAdapter(2, "poems", "/poems")]
    assert sent.queries.loading == {"sql", "poems"}
    with pytest.raises(AdapterError, match="'sql' is being loaded"):
        sent.queries.load("sql", "/other")
    assert sent.queries.resolve(AdapterLoaded(2, error="NaN")) is None
    assert sent.queries.resolve(AdapterLoaded(1, "0a")) == sent.messages[0]
    assert not sent.queries.loading
    await first
    with pytest.raises(AdapterError, match="NaN"):
        await second


async def test_an_adapter_is_freed_when_no_request_has_it_and_no_name_is_left() -> None:
    sent = Sent()
    sent.used.add("0a")
    sent.queries.unload("0a")
    sent.queries.free_unused({})
    assert sent.messages == []
    sent.used.clear()
    sent.queries.free_unused({})
    sent.queries.free_unused({})
    assert sent.messages == [UnloadAdapter("0a")]
    sent.queries.unload("0b")
    sent.queries.free_unused({"another name": "0b"})
    sent.queries.free_unused({})
    assert sent.messages == [UnloadAdapter("0a")], "it was unloaded under one of two names"


async def test_an_adapter_that_is_held_is_freed_when_the_last_holder_releases_it() -> None:
    sent = Sent()
    sent.queries.hold("0a")
    sent.queries.hold("0a")
    sent.queries.unload("0a")
    sent.queries.release("0a")
    sent.queries.free_unused({})
    assert sent.messages == []
    sent.queries.release("0a")
    sent.queries.free_unused({})
    assert sent.messages == [UnloadAdapter("0a")]


async def test_nothing_is_freed_while_another_adapter_is_loaded_which_may_be_the_same() -> None:
    sent = Sent()
    sent.queries.unload("0a")
    loading = sent.queries.load("again", "/sql")
    sent.queries.free_unused({})
    sent.queries.resolve(AdapterLoaded(1, "0a"))
    sent.queries.free_unused({"again": "0a"})
    await loading
    assert sent.messages == [LoadAdapter(1, "again", "/sql")]


async def test_a_crash_ends_every_wait_and_a_caller_that_has_left_disturbs_nothing() -> None:
    sent = Sent()
    left, waiting = sent.queries.load("a", "/a"), sent.queries.load("b", "/b")
    left.cancel()
    await asyncio.sleep(0)
    assert sent.queries.resolve(AdapterLoaded(1, "0a")) is not None
    sent.queries.unload("0c")
    sent.queries.fail("gone")
    with pytest.raises(EngineDied, match="gone"):
        await waiting
    sent.queries.free_unused({})
    assert len(sent.messages) == 2, "the engine that had 0c is gone"
