"""Random networks: every weight of the config is there, and activations keep their size."""

from dataclasses import replace

import pytest
import torch

from model.dummy_weights import random_model
from model.ops.interface import packed_bytes
from model.ops.reference.ops import ReferenceOps
from tests.support.kernels.attention_cases import Heads
from tests.support.kernels.paged import CPU, teacher_forced

CONFIG = replace(Heads(4, 2, 16).config, dim=64, hidden_dim=96, num_layers=2)
SPARSE = replace(CONFIG, num_experts=4, experts_per_token=2)


@pytest.mark.parametrize("config", [CONFIG, SPARSE, replace(SPARSE, tied_head=True)], ids=["dense", "sparse", "tied"])
def test_every_parameter_of_the_config_is_there(config: object) -> None:
    model = random_model(config, torch.float32, CPU, ReferenceOps(), seed=0)  # type: ignore[arg-type]
    shared = model.weights.head is model.weights.embedding
    assert shared == model.config.tied_head
    num_bytes = packed_bytes(model.weights) - (model.weights.embedding.nbytes if shared else 0)
    assert num_bytes == 4 * model.config.num_parameters()


def test_equal_seeds_give_equal_weights_and_others_do_not() -> None:
    first, second, other = (random_model(SPARSE, torch.float32, CPU, ReferenceOps(), seed) for seed in (3, 3, 4))
    assert torch.equal(first.weights.layers[1].qkv, second.weights.layers[1].qkv)
    assert not torch.equal(first.weights.layers[1].qkv, other.weights.layers[1].qkv)


def test_logits_are_finite_and_neither_tiny_nor_huge() -> None:
    [logits] = teacher_forced(random_model(SPARSE, torch.float32, CPU, ReferenceOps(), 1), [list(range(20))], [20])
    assert 0.2 < float(logits.std()) < 5
