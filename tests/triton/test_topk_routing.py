"""Tiles of routed pairs, against naive lists."""

import pytest
import torch

from model.ops.triton.launch import launch_on_device
from model.ops.triton.topk_routing import gather_tiles, one_expert, route
from tests.support.routing_requests import random_request, uniform_request
from tests.triton.cases import integers


def test_the_example_of_route() -> None:
    gate = torch.tensor([[0.0], [1.0]])
    request = uniform_request(3, 1)
    tiles = route(launch_on_device, torch.tensor([[1.0], [-1.0], [1.0]]), gate, request, 2)
    assert request.expert_ids.tolist() == [[1], [0], [1]]
    assert tiles.tile_expert.tolist()[:2] == [0, 1] and set(tiles.tile_expert.tolist()[2:]) == {-1}
    assert tiles.tile_pairs.tolist()[:4] == [1, 3, 0, 2]


@pytest.mark.parametrize("rows", [2, 16])
def test_each_pair_is_in_one_tile_of_its_expert_in_ascending_order(rows: int) -> None:
    for seed in range(4):
        num_rows, num_experts = integers(1, 40), integers(1, 8)
        x, gate = torch.randn(num_rows, 6), torch.randn(num_experts, 6)
        tiles = route(launch_on_device, x, gate, random_request(num_rows, num_experts, seed), rows)
        expert_ids, num_pairs = tiles.expert_ids.flatten().tolist(), tiles.expert_ids.numel()
        used = [tile for tile, expert in enumerate(tiles.tile_expert.tolist()) if expert >= 0]
        found: dict[int, list[int]] = {expert: [] for expert in range(num_experts)}
        for tile in used:
            pairs = tiles.tile_pairs[tile * rows : (tile + 1) * rows].tolist()
            found[int(tiles.tile_expert[tile])] += [pair for pair in pairs if pair < num_pairs]
        naive = {expert: [p for p, e in enumerate(expert_ids) if e == expert] for expert in range(num_experts)}
        assert found == naive
        assert len(used) == sum(-(-len(pairs) // rows) for pairs in naive.values())


@pytest.mark.parametrize(
    ("expert_ids", "tile_experts", "tile_pairs"),
    [([[2, 0, 1]], [0, 1, 2], [1, 3, 3, 3, 2, 3, 3, 3, 0, 3, 3, 3]), ([[0]] * 5, [0, 0], [0, 1, 2, 3, 4, 5, 5, 5])],
    ids=["one row", "one expert"],
)
def test_no_tile_is_left_over_in_the_worst_case(
    expert_ids: list[list[int]], tile_experts: list[int], tile_pairs: list[int]
) -> None:
    """The memory has room for the worst case, whose last padding is its end."""
    ids = torch.tensor(expert_ids, dtype=torch.int32)
    tiles = gather_tiles(launch_on_device, ids, torch.ones(ids.shape), max(tile_experts) + 1, 4)
    assert tiles.tile_expert.tolist() == tile_experts and tiles.tile_pairs.tolist() == tile_pairs


def test_one_expert_takes_all_rows_with_weight_1() -> None:
    tiles = one_expert(5, 4, torch.get_default_device())
    assert tiles.tile_pairs.tolist() == [0, 1, 2, 3, 4, 5, 5, 5]
    assert tiles.tile_expert.tolist() == [0, 0]
    assert tiles.expert_ids.tolist() == [[0]] * 5 and tiles.shares.tolist() == [[1.0]] * 5
