"""With several API keys, no key learns from `cached_tokens` what another one has sent."""

import random
from collections.abc import Sequence

import httpx
import pytest

from tests.support.servers.running import KEY, MODEL, RunningServer, forked_server

ONE, OTHER = "key-one", "key-other"
PROMPT = [random.Random(7).randrange(300, 3000) for _ in range(70)]


def num_cached(server: RunningServer, key: str, path: str = "/v1/completions", **fields: object) -> int:
    body = {"model": MODEL, "prompt": PROMPT, "max_tokens": 1, **fields}
    headers = {"Authorization": f"Bearer {key}"}
    reply = httpx.post(server.url + path, json=body, headers=headers, timeout=120)
    assert reply.status_code == 200, reply.text
    cached: int = reply.json()["usage"]["prompt_tokens_details"]["cached_tokens"]
    return cached


@pytest.mark.parametrize("flags", [(), ("--scheduling-policy", "fcfs")])
def test_a_key_finds_its_own_prompts_in_the_prefix_cache_and_no_other_keys(flags: Sequence[str]) -> None:
    with forked_server("--threads", "1", "--api-key", ONE, "--api-key", OTHER, *flags) as server:
        assert num_cached(server, ONE) == 0
        assert num_cached(server, ONE) == 64
        assert num_cached(server, OTHER) == 0
        assert num_cached(server, OTHER) == 64
        assert num_cached(server, ONE, cache_salt="s") == num_cached(server, OTHER, cache_salt="s") == 0
        chat = {"messages": [{"role": "user", "content": "A guess at what somebody else has written. " * 8}]}
        first, again, guess = (num_cached(server, key, "/v1/chat/completions", **chat) for key in (ONE, ONE, OTHER))
        assert first == guess < again


def test_keys_share_the_prefix_cache_if_the_server_is_told_to() -> None:
    with forked_server("--threads", "1", "--api-key", ONE, "--api-key", OTHER, "--share-prefix-cache") as server:
        assert [num_cached(server, key) for key in (ONE, OTHER)] == [0, 64]
        assert num_cached(server, OTHER, cache_salt="s") == 0


def test_a_single_key_finds_all_prompts(locked: RunningServer) -> None:
    assert [num_cached(locked, KEY) for _ in range(2)] == [0, 64]
