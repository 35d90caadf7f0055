"""Requests to an app whose fake engine generates three tokens, whatever the prompt."""

from typing import Any

from tests.support.servers.fake_engine import EOS, FakeEngine
from tests.support.servers.serving import MODEL, client_of, state_around

PROMPTS = [[1, 500, 9], [1, 600]]
TOKENS = [501, 502, 503]  # generated, then the end token
CHAT = {"messages": [{"role": "user", "content": "Hello"}]}


def an_engine() -> FakeEngine:
    return FakeEngine(lambda request: [*TOKENS, EOS])


async def post(engine: FakeEngine, url: str = "/v1/completions", **fields: Any) -> Any:
    """Return the reply to the first prompt, or to a short chat."""
    given = CHAT if "chat" in url else {"prompt": PROMPTS[:1]}
    async with client_of(state_around(engine)) as client:
        return await client.post(url, json={"model": MODEL, **given, **fields})
