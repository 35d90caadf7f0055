"""Requests to the routes that embed texts, and an engine with an embedding model."""

import struct
from collections.abc import Sequence

import httpx
import msgspec

from tests.support.servers.fake_engine import READY, FakeEngine, embedding_of
from tests.support.servers.serving import MODEL, client_of, saying, state_around, tokenizer

EMBEDDING_MODEL = msgspec.structs.replace(READY, embeds=True, generates=False)
TEXT = "It is a truth"
IDS = tokenizer().encode(TEXT)


def embedding_engine(*, held: bool = False) -> FakeEngine:
    """Return an engine with an embedding model, which generates nothing."""
    engine = FakeEngine(saying("text"), held=held)
    engine.ready = EMBEDDING_MODEL
    return engine


async def post(engine: FakeEngine, url: str, max_num_queued: int = 1024, **fields: object) -> httpx.Response:
    """Send a request to an app around the engine."""
    async with client_of(state_around(engine, max_num_queued=max_num_queued)) as client:
        return await client.post(url, json={"model": MODEL, **fields})


def vector_of(ids: Sequence[int], length: int = 8) -> list[float]:
    """Return the embedding that the engine gives a prompt."""
    return list(struct.unpack(f"<{length}f", embedding_of(ids, length)))
