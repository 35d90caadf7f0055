"""The schedule of the learning rate, and one training step."""

import pytest
import torch

from model.demo.training.network import Network, NetworkConfig
from model.demo.training.train import optimizers, rate, train_step

CONFIG = NetworkConfig(
    vocab_size=50, dim=16, num_layers=1, num_heads=2, num_kv_heads=1, head_dim=8, hidden_dim=12, num_experts=4
)


@pytest.mark.parametrize(("progress", "factor"), [(0, 0), (0.01, 0.5), (0.02, 1), (0.5, 1), (0.75, 0.5), (1, 0)])
def test_the_rate_rises_stays_and_falls(progress: float, factor: float) -> None:
    assert rate(progress) == pytest.approx(factor)


def test_each_parameter_has_one_optimizer_and_steps_lower_the_loss() -> None:
    torch.manual_seed(0)
    network = Network(CONFIG)
    both = optimizers(network)
    trained = [id(p) for optimizer in both for group in optimizer.param_groups for p in group["params"]]
    assert sorted(trained) == sorted(map(id, network.parameters()))
    ids = torch.randint(50, (2, 9))
    losses = [train_step(network, both, ids) for _ in range(8)]
    assert losses[-1] < losses[0]
