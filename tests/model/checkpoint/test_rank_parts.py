"""The rows of each tensor that a rank reads, and how much of a checkpoint that is."""

import pytest

from model.checkpoint.checkpoint import read_config, read_stored_weights
from model.checkpoint.rank_parts import RankParts, rank_rows, rank_shape
from model.checkpoint.weight_sizes import weight_bytes, weight_bytes_of_ranks
from model.cut import Cut, all_cuts
from tests.support.paths import DEMO

REPLICATED = ("embedding", "gate", "norms")


@pytest.mark.parametrize(
    ("name", "rows"),
    [
        ("model.layers.0.self_attn.q_proj.weight", range(96, 192)),  # 2 KV heads
        ("model.layers.0.self_attn.k_proj.weight", range(96, 192)),
        ("model.layers.0.self_attn.o_proj.weight", range(96, 192)),  # 6 panels
        ("model.layers.3.block_sparse_moe.experts.7.w1.weight", range(96, 192)),
        ("model.layers.3.block_sparse_moe.experts.7.w2.weight", range(96, 192)),
        ("model.layers.0.mlp.down_proj.weight", range(96, 192)),
        ("lm_head.weight", range(96, 192)),
        ("model.layers.0.block_sparse_moe.gate.weight", range(192)),
        ("model.layers.0.mlp.gate.weight", range(192)),
        ("model.layers.0.input_layernorm.weight", range(192)),
        ("model.embed_tokens.weight", range(192)),
    ],
)
def test_matrices_are_cut_and_the_rest_is_whole(name: str, rows: range) -> None:
    assert rank_rows(name, 192, 2, Cut(1, 2)) == rows
    assert rank_rows(name, 192, 2, Cut()) == range(192)


def test_fused_experts_are_cut_within_each_matrix() -> None:
    """w1 and w3 of 144 outputs have 5 panels: 2 for rank 0, 3 with a short one for rank 1."""
    shapes = [rank_shape("model.layers.0.mlp.experts.gate_up_proj", (4, 288, 64), 2, cut) for cut in all_cuts(2)]
    assert shapes == [(4, 128, 64), (4, 160, 64)]


@pytest.mark.parametrize("size", [1, 2])
def test_each_rank_reads_its_share_and_what_is_on_all_ranks(size: int) -> None:
    config = read_config(DEMO)[0]
    stored = read_stored_weights(DEMO, config)
    whole = sum(tensor.num_bytes for tensor in stored.values())
    replicated = sum(weight_bytes(stored, 2, "none")[part] for part in REPLICATED)
    for cut in all_cuts(size):
        num_bytes = RankParts(stored, config.num_kv_heads, cut).num_bytes()
        assert num_bytes == (whole - replicated) // size + replicated


@pytest.mark.parametrize("quantization", ["none", "lossless", "int8", "int4"])
def test_ranks_together_take_the_whole_and_copies_of_what_is_on_all(quantization: str) -> None:
    config = read_config(DEMO)[0]
    stored = read_stored_weights(DEMO, config)
    whole, ranks = (weight_bytes_of_ranks(stored, 2, quantization, (), size, config.num_kv_heads) for size in (1, 2))
    assert whole == weight_bytes(stored, 2, quantization)
    assert ranks == {part: count * (2 if part in REPLICATED else 1) for part, count in whole.items()}
