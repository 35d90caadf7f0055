"""Expert statistics of a running server: its three reports agree, and texts of three kinds differ visibly."""

from typing import Any

import httpx
import pytest

from tests.support.servers.running import RunningServer

AUSTEN = [
    "She was then obliged to assure her mother that it was not in her power to",
    "Mr. Darcy drew his chair a little towards her, and said, You cannot have a right to such very strong",
    "Elinor, this eldest daughter, whose advice was so effectual, possessed a strength of understanding",
]
SCRIPTURE = [
    "And it came to pass in those days, that the LORD spake unto Moses, saying, Speak unto the children of Israel",
    "Blessed are they that mourn: for they shall be comforted. Blessed are the meek: for they shall inherit",
    "And he said unto them, Go ye into all the world, and preach the gospel to every creature.",
]
PYTHON = [
    "def __init__(self, name, value=None):\n        self.name = name\n        self._value = value\n",
    "    try:\n        import _socket\n    except ImportError:\n        raise RuntimeError('no socket')\n",
    "class Error(Exception):\n    def __repr__(self):\n        return '%s(%r)' % (type(self).__name__, self.args)\n",
]


def _experts(server: RunningServer, query: str = "") -> list[dict[str, Any]]:
    layers: list[dict[str, Any]] = httpx.get(f"{server.url}/experts{query}", timeout=60).json()["layers"]
    return layers


def _shares(server: RunningServer, texts: list[str]) -> list[list[float]]:
    httpx.post(f"{server.url}/experts/reset", timeout=60)
    reply = server.complete(texts, max_tokens=1, expert_usage=True)
    layers = _experts(server)
    assert [layer["tokens"] for layer in layers] == reply.json()["usage"]["expert_tokens"]["prompt"]
    return [layer["share"] for layer in layers]


def _distance(one: list[list[float]], other: list[list[float]]) -> float:
    """Return the total variation distance, averaged over layers: 0 for equal shares, 1 if no expert serves both."""
    of_layer = [sum(abs(a - b) for a, b in zip(x, y, strict=True)) / 2 for x, y in zip(one, other, strict=True)]
    return sum(of_layer) / len(of_layer)


def test_texts_of_three_kinds_use_visibly_different_experts(server: RunningServer) -> None:
    """Two kinds differ by more than 0.1 in total variation; two halves of one kind differ far less."""
    kinds = [_shares(server, texts) for texts in (AUSTEN, SCRIPTURE, PYTHON)]
    apart = [_distance(kinds[i], kinds[j]) for i, j in ((0, 1), (0, 2), (1, 2))]
    assert min(apart) > 0.1, apart


def test_usage_report_and_metrics_agree(server: RunningServer) -> None:
    httpx.post(f"{server.url}/experts/reset", timeout=60)  # once it is answered, all earlier steps are counted
    before = server.settled_metrics()
    usages = [
        server.complete(AUSTEN[:2], max_tokens=20, n=1, seed=k, experts_per_token=k, expert_usage=True).json()["usage"]
        for k in (1, 2, 8)
    ]
    layers, recent = _experts(server), _experts(server, "?window=60")
    for k, usage in zip((1, 2, 8), usages, strict=True):
        for layer in usage["expert_tokens"]["prompt"]:
            assert sum(layer) == k * usage["prompt_tokens"]
        for layer in usage["expert_tokens"]["completion"]:
            assert sum(layer) == k * (usage["completion_tokens"] - 2), "the last token of each prompt's choice"
    after = server.settled_metrics()
    for index, layer in enumerate(layers):
        counted = [usage["expert_tokens"][part][index] for usage in usages for part in ("prompt", "completion")]
        tokens = [sum(of_expert) for of_expert in zip(*counted, strict=True)]
        assert layer["tokens"] == recent[index]["tokens"] == tokens
        for expert, count in enumerate(tokens):
            key = ("smoe_expert_tokens_total", (("expert", str(expert)), ("layer", str(index))))
            assert after[key] - before.get(key, 0) == count
        assert after["smoe_expert_imbalance_ratio", (("layer", str(index)),)] >= 1


@pytest.mark.parametrize("k", [1, 8])
def test_experts_per_token_changes_the_text_and_repeated_requests_agree(server: RunningServer, k: int) -> None:
    params = {"max_tokens": 24, "temperature": 0, "logprobs": 2, "experts_per_token": k}
    alone = server.complete(AUSTEN[0], **params).json()["choices"]
    assert server.complete(AUSTEN[0], **params).json()["choices"] == alone
    assert server.complete(AUSTEN[0], **{**params, "experts_per_token": 2}).json()["choices"] != alone
