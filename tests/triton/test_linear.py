"""Linear layers with plain and 8-bit weights, against float64."""

from itertools import combinations

import pytest
import torch

from model.ops.triton.gemm_tiles import choose_tiling
from model.ops.triton.launch import launch_on_device
from model.ops.triton.linear import linear
from model.ops.triton.ops import TritonOps
from model.ops.triton.packed_weights import WeightFormat, dequantize, pack
from tests.support.kernels import float64_oracle as oracle
from tests.triton.cases import DTYPES, assert_close, summed

FORMATS: list[WeightFormat] = ["plain", "int8", "fp8"]
TILE_ROWS = (16, 32, 64, 128)
SHAPES = ((1, 1, 1), (3, 130, 70), (130, 70, 129), (2, 20, 1100))  # rows, outputs, inputs

# Every pair of tile, shape, format and dtype: enough for all bugs of tests/triton/mutants that this file must notice.
CASES = [
    (DTYPES[(tile // 2 + shape) % 2], FORMATS[(tile + shape) % 3], TILE_ROWS[tile], *SHAPES[shape])
    for tile in range(4)
    for shape in range(4)
]


def test_the_cases_have_every_pair_of_values() -> None:
    named = [(dtype, weight_format, tile, tuple(shape)) for dtype, weight_format, tile, *shape in CASES]
    for first, second in combinations(range(4), 2):
        pairs = {(case[first], case[second]) for case in named}
        assert len(pairs) == len({case[first] for case in named}) * len({case[second] for case in named})
    assert [len(set(values)) for values in zip(*named, strict=True)] == [2, 3, 4, 4]


@pytest.mark.parametrize(("dtype", "weight_format", "tile_rows", "num_rows", "outputs", "dim"), CASES)
def test_linear(
    dtype: torch.dtype, weight_format: WeightFormat, tile_rows: int, num_rows: int, outputs: int, dim: int
) -> None:
    tiling = choose_tiling(tile_rows, torch.bfloat16, weight_format, False)
    x, weight = torch.randn(num_rows, dim).to(dtype), pack(torch.randn(outputs, dim).to(dtype), weight_format)
    exact = oracle.linear(x, dequantize(weight))
    assert_close(linear(launch_on_device, x, weight, tiling)[0], exact, dtype)
    assert_close(linear(launch_on_device, x, weight, tiling, 3).sum(0), exact, dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_no_rows_give_empty_results(dtype: torch.dtype) -> None:
    ops = TritonOps(dtype, deterministic=True)
    empty = torch.empty(0, 8, dtype=dtype)
    head = ops.pack_linear(torch.randn(12, 8).to(dtype))
    logits = ops.logits(torch.randn(3, 8).to(dtype), torch.empty(0, dtype=torch.int64), head)
    assert logits.shape == (0, 12) and summed(ops.linear(empty, head), empty).shape == (0, 12)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("weight_format", FORMATS)
def test_products_are_added_in_ascending_order_of_k(dtype: torch.dtype, weight_format: WeightFormat) -> None:
    """32768 - 32768 + 1/1024 is 1/1024 in this order and 0 in the other, with each number in a dot of its own."""
    tiling = choose_tiling(16, torch.bfloat16, weight_format, False)
    for step in (tiling.inputs,) if weight_format == "plain" else (tiling.inputs // 4, tiling.inputs):
        x, weight = torch.zeros(1, 3 * step), torch.zeros(1, 3 * step)
        x[0, ::step] = torch.tensor([2.0**15, 2.0**15, 2.0**-10])
        weight[0, ::step] = torch.tensor([1.0, -1.0, 1.0])
        product = linear(launch_on_device, x.to(dtype), pack(weight.to(dtype), weight_format), tiling)
        assert float(product) == pytest.approx(2.0**-10, rel=1e-3)
