"""A rank's part of a pack has the bytes that the rank would load from the checkpoint."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from model.checkpoint.config_file import load_config
from model.checkpoint.errors import CheckpointError
from model.config import ModelConfig
from model.cut import Cut, all_cuts
from model.group import Group
from model.loader import LoadOptions, load_model
from model.mixtral import MixtralWeights
from model.ops.native.packed_weights import NativeExperts, NativeLinear
from model.pack.rank_part import part_of_rank
from tests.support.checkpoints.mixtral import Shape, save_random_checkpoint
from tests.support.kernels.native_cases import ISAS, native

CPU = torch.device("cpu")
# 4 KV heads of 32; 5 panels of the hidden dim, 4 of outputs, 4 of a vocabulary whose last panel is not full.
SHAPE = Shape(dim=128, num_heads=8, num_kv_heads=4, head_dim=32, hidden_dim=160, num_experts=3, vocab_size=101)


class Rank(Group):
    """A rank that only loads."""

    def __init__(self, cut: Cut) -> None:
        self.cut = cut


def load(path: Path, config: ModelConfig, cut: Cut) -> MixtralWeights:
    ops = native(ISAS[-1], quantization="int8")
    return load_model(path, config, ops, LoadOptions(torch.float32, CPU, group=Rank(cut))).weights


def panels(linear: NativeLinear) -> Tensor:
    return torch.cat([matrix.panels for matrix in linear.matrices])


@pytest.mark.parametrize("num_experts", [3, 0])
@pytest.mark.parametrize("size", [2, 4])
def test_the_parts_are_those_that_ranks_load(size: int, num_experts: int, tmp_path: Path) -> None:
    save_random_checkpoint(replace(SHAPE, num_experts=num_experts), tmp_path)
    config, _ = load_config(tmp_path)
    whole = load(tmp_path, config, Cut())
    for cut in all_cuts(size):
        found, expected = part_of_rank(whole, config, cut), load(tmp_path, config, cut)
        assert torch.equal(panels(found.head), panels(expected.head))
        assert found.head.num_outputs == expected.head.num_outputs
        assert torch.equal(found.embedding, expected.embedding) and torch.equal(found.norm, expected.norm)
        for own, loaded in zip(found.layers, expected.layers, strict=True):
            assert torch.equal(panels(own.qkv), panels(loaded.qkv)) and own.qkv.num_outputs == loaded.qkv.num_outputs
            assert len(own.qkv.matrices) <= 3
            assert torch.equal(panels(own.output), panels(loaded.output))
            ffn = (own.ffn, loaded.ffn) if not num_experts else (own.ffn.experts, loaded.ffn.experts)
            assert_equal_experts(*ffn)


def assert_equal_experts(found: NativeExperts, expected: NativeExperts) -> None:
    assert torch.equal(found.w13, expected.w13) and torch.equal(found.w2, expected.w2)
    assert (found.num_hidden, found.num_outputs) == (expected.num_hidden, expected.num_outputs)
    assert (found.dim, found.hidden_dim, found.panel_sizes) == (expected.dim, expected.hidden_dim, expected.panel_sizes)


def test_heads_that_end_within_a_panel_are_refused(tmp_path: Path) -> None:
    save_random_checkpoint(replace(SHAPE, head_dim=16, num_heads=4, num_kv_heads=2), tmp_path)
    config, _ = load_config(tmp_path)
    with pytest.raises(CheckpointError, match="cut only between panels of 32 outputs: serve the checkpoint on ranks"):
        part_of_rank(load(tmp_path, config, Cut()), config, Cut(1, 2))
