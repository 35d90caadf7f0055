"""Parts of ranks: each output belongs to one rank, and networks that cannot be cut are named."""

from dataclasses import replace

import pytest

from model.config import ModelConfig
from model.cut import MIN_BUFFER_BYTES, Cut, all_cuts, gather_buffer_bytes, why_not_divisible
from tests.support.kernels.attention_cases import Heads

CONFIG: ModelConfig = replace(Heads(8, 4, 16).config, dim=128, hidden_dim=160, vocab_size=101)


@pytest.mark.parametrize(("count", "unit"), [(80, 32), (128, 32), (101, 32), (8, 2), (3072, 32)])
@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_each_output_belongs_to_one_rank_and_units_stay_whole(count: int, unit: int, size: int) -> None:
    parts = [cut.part(count, unit) for cut in all_cuts(size)]
    assert [output for part in parts for output in part] == list(range(count))
    assert all(part.start % unit == 0 for part in parts)


def test_the_example_of_the_docstring() -> None:
    assert [cut.part(80, 32) for cut in all_cuts(2)] == [range(32), range(32, 80)]


def test_query_heads_follow_their_kv_heads() -> None:
    assert [cut.heads(CONFIG) for cut in all_cuts(4)] == [range(2), range(2, 4), range(4, 6), range(6, 8)]
    own = Cut(1, 4).with_own_heads(CONFIG)
    assert (own.num_heads, own.num_kv_heads) == (2, 1)


@pytest.mark.parametrize(
    ("config", "size", "reason"),
    [
        (CONFIG, 1, ""),
        (CONFIG, 4, ""),
        (CONFIG, 3, "has 4 KV heads, which 3 ranks cannot share equally; 1, 2, 4 can"),
        (CONFIG, 8, "has 4 KV heads, which 8 ranks cannot share equally; 1, 2, 4 can"),
        (replace(CONFIG, dim=64), 4, "has a matrix of 64 outputs, fewer than 32 for each of 4 ranks"),
    ],
)
def test_a_network_that_cannot_be_cut_is_named(config: ModelConfig, size: int, reason: str) -> None:
    assert why_not_divisible(config, size) == reason


def test_the_buffer_holds_the_widest_row() -> None:
    assert gather_buffer_bytes(CONFIG) == MIN_BUFFER_BYTES
    assert gather_buffer_bytes(replace(CONFIG, vocab_size=400_001)) >= 4 * 400_001
