"""Measures of the model card: bits per byte and shares of experts."""

import math
from itertools import pairwise

import pytest
import torch

from model.demo.training.evaluate import ExpertCounter, _chart, bits_per_byte
from model.demo.training.network import Network, NetworkConfig

CONFIG = NetworkConfig(
    vocab_size=300,
    dim=8,
    num_layers=2,
    num_heads=1,
    num_kv_heads=1,
    head_dim=8,
    hidden_dim=6,
    num_experts=4,
    context_len=4,
)


class ByteTokenizer:
    """Each byte is a token; <s> is 256."""

    def encode(self, text: str) -> list[int]:
        return list(text.encode())

    def bos_id(self) -> int:
        return 256


@torch.no_grad()
def test_bits_per_byte_are_those_of_contexts_that_start_anew() -> None:
    torch.manual_seed(0)
    network = Network(CONFIG).eval()
    texts, nats = ["abcdefg", "\u00fc"], 0.0
    for context in ([256, *b"abcd"], [256, *b"efg"], [256, *"\u00fc".encode()]):
        logits, _ = network(torch.tensor([context]))
        nats -= sum(float(row.log_softmax(-1)[token]) for row, token in zip(logits[0], context[1:], strict=False))
    measured = bits_per_byte(network, ByteTokenizer(), texts)  # type: ignore[arg-type]
    assert measured == pytest.approx(nats / math.log(2) / 9, rel=1e-5)


@torch.no_grad()
def test_shares_count_the_two_experts_of_each_token_since_the_last_call() -> None:
    torch.manual_seed(0)
    network = Network(CONFIG).eval()
    counter = ExpertCounter(network)
    network(torch.randint(300, (3, 4)))
    shares = counter.take_shares()
    assert shares.shape == (2, 4) and torch.allclose(shares.sum(-1), torch.ones(2))
    assert torch.allclose(shares * 24, (shares * 24).round(), atol=1e-4), "3 * 4 tokens with 2 experts each"
    assert not counter.counts.any()


def test_the_chart_falls_from_left_to_right_with_the_loss() -> None:
    line = _chart([(1.0, 5.0), (2.0, 3.0), (4.0, 2.0)]).split('points="')[1].split('"')[0]
    points = [tuple(map(float, point.split(","))) for point in line.split()]
    assert all(a[0] < b[0] and a[1] < b[1] for a, b in pairwise(points))
