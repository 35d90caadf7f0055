"""Parts of the training network against naive loops."""

import torch

from model.demo.training.network import NetworkConfig, SparseMoe, _window_mask

CONFIG = NetworkConfig(dim=6, hidden_dim=5, num_experts=4, experts_per_token=2)


def test_the_mask_shows_each_position_itself_and_the_window_before_it() -> None:
    mask = _window_mask(5, 2)
    assert [[int(value == 0) for value in row] for row in mask.tolist()] == [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [0, 1, 1, 0, 0],
        [0, 0, 1, 1, 0],
        [0, 0, 0, 1, 1],
    ]


@torch.no_grad()
def test_the_mixture_is_the_weighted_sum_of_the_two_best_experts() -> None:
    torch.manual_seed(0)
    moe, x = SparseMoe(CONFIG), torch.randn(2, 3, 6)
    mixed, balance = moe(x)
    for sequence in range(2):
        for position in range(3):
            token = x[sequence, position]
            logits = moe.gate(token)
            best = sorted(range(4), key=lambda e: -float(logits[e]))[:2]
            shares = logits[best].softmax(-1)
            expected = sum(share * moe.experts[e](token) for share, e in zip(shares, best, strict=True))
            assert torch.allclose(mixed[sequence, position], expected, atol=1e-5)
    assert float(balance) > 0
