"""Sessions through a real Envoy: a conversation stays on one replica and finds its beginning in the prefix cache."""

from collections import Counter
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.support.hosts.envoy import REPLICA_HEADER, Envoy, configuration, running_envoy
from tests.support.servers.running import RunningServer, forked_server

TURN = [{"role": "user", "content": "Count from 3 to 7."}]
APIS: dict[str, dict[str, Any]] = {
    "/v1/completions": {"prompt": "It was", "max_tokens": 1},
    "/v1/chat/completions": {"messages": TURN, "max_tokens": 1},
    "/v1/responses": {"input": "Count from 3 to 7.", "max_output_tokens": 16},
    "/v1/messages": {"messages": TURN, "max_tokens": 1},
}
NUM_CONVERSATIONS, NUM_TURNS = 12, 4
NUM_SESSIONS = 300  # the mean is 150 for each replica; fewer than 100 have a chance of 10^-6


@pytest.fixture(scope="module")
def servers() -> Iterator[list[RunningServer]]:
    """Two servers with the bundled model."""
    with forked_server("--threads", "1") as first, forked_server("--threads", "1") as second:
        yield [first, second]


@pytest.fixture(scope="module")
def proxy(servers: list[RunningServer]) -> Iterator[Envoy]:
    with running_envoy(
        configuration("envoy.yaml", [server.url.removeprefix("http://") for server in servers])
    ) as envoy:
        yield envoy


def converse(url: str, name: str, session: str) -> tuple[int, int]:
    """Chat for a few turns; return the numbers of prompt tokens and of those from the prefix cache."""
    messages: list[dict[str, str]] = [{"role": "system", "content": f"{name}: answer in one sentence. " * 8}]
    num_prompt = num_cached = 0
    for turn in range(NUM_TURNS):
        messages.append({"role": "user", "content": f"Tell me about the house number {turn}, please."})
        body = {"messages": messages, "max_tokens": 12, "temperature": 0, "ignore_eos": True}
        reply = httpx.post(
            f"{url}/v1/chat/completions", json=body, headers={"x-session-id": session}, timeout=120
        ).json()
        messages.append({"role": "assistant", "content": reply["choices"][0]["message"]["content"]})
        num_prompt += reply["usage"]["prompt_tokens"]
        num_cached += reply["usage"]["prompt_tokens_details"]["cached_tokens"]
    return num_prompt, num_cached


def test_a_session_has_the_cache_hits_of_a_single_replica(servers: list[RunningServer], proxy: Envoy) -> None:
    """Each conversation begins with words of its own, so that nobody finds another's beginning."""
    runs = {}
    for where, url in (("fleet", proxy.url), ("alone", servers[0].url)):
        turns = [converse(url, f"{where} {100 + n}", f"{where} {n}") for n in range(NUM_CONVERSATIONS)]
        runs[where] = sum(cached for _, cached in turns) / sum(prompt for prompt, _ in turns)
    assert runs["alone"] > 0.5
    assert runs["fleet"] >= 0.95 * runs["alone"]


def test_on_all_four_apis_a_session_meets_one_replica_and_sessions_are_spread(proxy: Envoy) -> None:
    counts: Counter[str] = Counter()
    paths = list(APIS)
    with httpx.Client(base_url=proxy.url, timeout=120) as client:
        for session in range(NUM_SESSIONS):
            tried = paths if session < 8 else [paths[session % len(paths)]]
            answers = [client.post(path, json=APIS[path], headers={"x-session-id": f"s{session}"}) for path in tried]
            assert {answer.status_code for answer in answers} == {200}
            [replica] = {answer.headers[REPLICA_HEADER] for answer in answers}
            counts[replica] += 1
    few, many = sorted(counts.values())
    assert many <= 2 * few


def test_both_replicas_give_the_same_bits_under_the_same_fingerprint(servers: list[RunningServer]) -> None:
    answers = []
    for server in servers:
        reply = server.complete(
            "It was not in her power to", max_tokens=32, logprobs=5, seed=11, temperature=0.9
        ).json()
        answers.append((reply["system_fingerprint"], reply["choices"][0]["logprobs"], reply["choices"][0]["text"]))
    assert answers[0] == answers[1]
