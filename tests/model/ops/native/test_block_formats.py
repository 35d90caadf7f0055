"""Products with the block formats, on every instruction set of this machine.

GGUF's formats are decoded by llama.cpp's `gguf` package, the products are float64. What remains is the rounding of rows
to int8, and a float32 rounding for each block.
"""

from itertools import product

import numpy as np
import pytest
import torch
from torch import Tensor

from model.ops.interface import FfnWeights
from model.ops.native.packed_weights import BLOCK_FORMATS, NativeLinear
from model.ops.weights import BLOCK_SIZES, BlockMatrix, Weight, groups_with_minima, groups_with_zeros
from tests.support.checkpoints.block_matrices import (
    GGUF_FORMATS,
    GROUP_FORMATS,
    MIN_AT,
    SCALE_AT,
    decoded,
    in_order,
    quantized_rows,
    random_blocks,
    set_halves,
)
from tests.support.kernels import float64_oracle as oracle
from tests.support.kernels.native_cases import DTYPES, ISAS, native
from tests.support.paths import ROOT
from tests.support.routing_requests import uniform_request

FORMATS = list(BLOCK_SIZES)
ACCURACY = 1e-6
# Rows from which numbers are unpacked first, and of tiles.
TILE_BORDERS = (14, 15, 16, 17, 27, 28, 29, 31, 32, 33, 40, 64, 65)
INT8_ERROR = 0.012  # of normally distributed rows in int8, relative
MIXED = [
    ("Q4_K", "Q4_K", "Q6_K"),
    ("Q8_0", "Q4_K", "Q5_0"),
    ("Q5_K", "Q6_K", "Q4_1"),
    ("INT4_G128", "Q5_1", "INT4_G32"),
    ("AFFINE4_G64", "INT8_G128", "AFFINE8_G32"),
    ("IQ2_XXS", "IQ2_S", "IQ3_XXS"),
    ("IQ3_S", "IQ2_XS", "IQ4_NL"),
]


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


def _pack(*weights: Weight) -> NativeLinear:
    return native(ISAS[0]).pack_linear(*weights)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("block_format", FORMATS)
def test_products_are_those_of_the_decoded_weights(isa: str, dtype: torch.dtype, block_format: str) -> None:
    for num_rows, outputs, dim in ((1, 33, 256), (7, 64, 512), (13, 31, 1024), (25, 100, 768), (33, 40, 512)):
        matrix, x = random_blocks(block_format, outputs, dim, seed=outputs), torch.randn(num_rows, dim).to(dtype)
        rows, weights = native(isa).rms_norm(x, torch.ones(dim, dtype=dtype), 0.0), decoded(matrix)
        ours = native(isa).logits(rows, torch.arange(num_rows), _pack(matrix))
        assert oracle.relative_error(ours, oracle.linear(quantized_rows(rows, block_format), weights)) < ACCURACY
        assert oracle.relative_error(ours, oracle.linear(rows, weights)) < INT8_ERROR


@pytest.mark.parametrize("block_format", FORMATS)
def test_bits_are_the_same_on_every_instruction_set_and_in_any_batch(block_format: str) -> None:
    dim = 1280 + BLOCK_SIZES[block_format][0] % 256  # blocks of less than 256 numbers: the last part is shorter
    packed, rows = _pack(random_blocks(block_format, 75, dim)), torch.randn(70, dim) * torch.rand(70, dim).exp()
    expected = torch.cat([native(ISAS[0]).linear(row, packed) for row in rows.split(1)])
    for isa, threads in product(ISAS, (1, 2)):
        for count in (*range(1, 14), *TILE_BORDERS, 70):
            some = torch.randperm(70)[:count]
            assert torch.equal(native(isa, threads).linear(rows[some], packed), expected[some]), (isa, threads, count)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("block_format", GGUF_FORMATS)
def test_extreme_blocks_are_exact(isa: str, block_format: str) -> None:
    """All bits of the codes set or clear, scales zero, negative, subnormal or the largest float16, largest rows."""
    dim = 512
    numbers, size = BLOCK_SIZES[block_format]
    values = (0.0, 1.0, -1.0, 6e-8, 3.1e-5, 65504.0, -65504.0)
    cases = list(product((0x00, 0xFF, 0x80, 0x7F), values, values if block_format in MIN_AT else (0.0,)))
    blocks = np.empty((len(cases), dim // numbers, size), np.uint8)
    for row, (code, d, low) in enumerate(cases):
        blocks[row] = code
        set_halves(blocks[row], SCALE_AT[block_format], np.full(dim // numbers, d))
        if block_format in MIN_AT:
            set_halves(blocks[row], MIN_AT[block_format], np.full(dim // numbers, low))
    matrix = BlockMatrix(block_format, torch.from_numpy(blocks.reshape(len(cases), -1)))
    # Some instruction sets add up parts of a group: their sums are largest beside zeros or other signs.
    parts = [torch.arange(dim) // run % 2 for run in (2, 8, 16)]
    ends = torch.stack(
        (torch.ones(dim), -torch.ones(dim), *(1.0 - part for part in parts), *(1.0 - 2.0 * part for part in parts))
    )
    x = torch.cat((ends, torch.randn(5, dim), torch.zeros(1, dim)))
    exact = oracle.linear(quantized_rows(x, block_format), decoded(matrix))
    largest = oracle.linear(x.abs(), decoded(matrix).abs())  # what cancels leaves its roundings
    packed = _pack(matrix)
    ours = native(isa).linear(x, packed)
    assert ((ours.double() - exact).abs() <= ACCURACY * largest).all()
    for count in (1, 3, 16, 28):  # other code multiplies few rows, and many
        repeated = x.repeat(4, 1)[:count]
        assert torch.equal(native(isa).linear(repeated, packed), ours.repeat(4, 1)[:count]), count


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("size", [32, 64, 128])
def test_extreme_groups_are_exact(isa: str, size: int, bits: int) -> None:
    """Codes, zero points (GPTQ's reach 16 and 256) and rows at their ends, scales of any sign and size."""
    zero_points = (0, 8, 15, 16, 255) if bits == 4 else (0, 1, 127, 128, 129, 255, 256)
    cases = list(product((0, (1 << bits) - 1), zero_points, (0.0, 1.0, -1.0, 1e-38, 1e30)))
    codes, zeros, scales = zip(*cases, strict=True)
    matrix = groups_with_zeros(
        torch.tensor(codes, dtype=torch.uint8)[:, None].repeat(1, 256),
        torch.tensor(scales)[:, None].repeat(1, 256 // size),
        torch.tensor(zeros)[:, None].repeat(1, 256 // size),
        bits,
    )
    x = torch.cat((torch.ones(1, 256), -torch.ones(1, 256), torch.zeros(1, 256)))
    weights = torch.tensor([scale * (code - zero) for code, zero, scale in cases])
    exact = x.double() @ weights.double()[:, None].repeat(1, 256).T
    assert torch.allclose(native(isa).linear(x, _pack(matrix)).double(), exact, rtol=ACCURACY, atol=0)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("size", [32, 64, 128])
def test_extreme_groups_with_minima_are_exact(isa: str, size: int, bits: int) -> None:
    cases = list(product((0, (1 << bits) - 1), (0.0, 1.0, -1e-3, 1e30), (0.0, 1.0, -1.0, 1e-38, 1e30)))
    codes, minima, scales = zip(*cases, strict=True)
    matrix = groups_with_minima(
        torch.tensor(codes, dtype=torch.uint8)[:, None].repeat(1, 256),
        torch.tensor(scales)[:, None].repeat(1, 256 // size),
        torch.tensor(minima)[:, None].repeat(1, 256 // size),
        bits,
    )
    x = torch.cat((torch.ones(1, 256), -torch.ones(1, 256), torch.zeros(1, 256)))
    weights = torch.tensor([scale * code + minimum for code, minimum, scale in cases])
    exact = x.double() @ weights.double()[:, None].repeat(1, 256).T
    largest = torch.tensor([max(abs(scale * code), abs(minimum)) for code, minimum, scale in cases])
    ours = native(isa).linear(x, _pack(matrix)).double()
    assert ((ours - exact).abs() <= ACCURACY * 256 * largest.double()).all()


@pytest.mark.parametrize("block_format", GROUP_FORMATS)
def test_inputs_in_another_order_give_the_bits_of_rows_in_that_order(block_format: str) -> None:
    """Compared with a matrix without an order, whose rows of x are put in order by torch."""
    matrix = random_blocks(block_format, 75, 1280)
    ordered = in_order(matrix)
    assert ordered.order is not None
    x = torch.randn(40, 1280) * torch.rand(40, 1280).exp()
    expected = native(ISAS[0]).linear(x[:, ordered.order].contiguous(), _pack(matrix))
    assert torch.equal(decoded(ordered)[:, ordered.order], decoded(matrix))
    for isa, count in product(ISAS, (1, 5, 13, 40)):
        assert torch.equal(native(isa, 2).linear(x[:count], _pack(ordered)), expected[:count]), (isa, count)
        halves = native(isa).linear(x[:count].bfloat16(), _pack(ordered))
        assert torch.equal(halves, native(isa).linear(x[:count, ordered.order].bfloat16(), _pack(matrix)))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("is_shared", [False, True])
def test_each_expert_may_have_orders_of_its_own(isa: str, is_shared: bool) -> None:
    """w1 and w3 of an expert share an order in most files, not in all."""
    formats = ("INT4_G64", "INT4_G64", "INT8_G32")
    dim, hidden, num_rows = 256, 512, 30
    experts = [
        FfnWeights(
            in_order(expert.w1, 3 * e), in_order(expert.w3, 3 * e + (not is_shared)), in_order(expert.w2, 3 * e + 2)
        )
        for e, expert in enumerate(_experts(formats, dim, hidden))
    ]
    gate, x = torch.randn(4, dim), torch.randn(num_rows, dim)
    packed = native(isa).pack_moe(gate, iter(experts))
    assert (packed.experts.arguments[1].w1.order == packed.experts.arguments[1].w3.order) == is_shared
    ours = native(isa, 2).moe(x, packed, uniform_request(num_rows, 2))
    exact = oracle.moe(x, gate, [_decoded_ffn(expert) for expert in experts], [2] * num_rows)
    assert oracle.relative_error(ours, exact) < 0.03
    alone = [native(isa).moe(row, packed, uniform_request(1, 2)) for row in x.split(1)]
    assert torch.equal(ours, torch.cat(alone))


def test_neighbours_of_different_orders_are_matrices_of_their_own() -> None:
    weights = [in_order(random_blocks("INT4_G64", 64, 256, seed=seed), order) for seed, order in enumerate((1, 1, 2))]
    packed, x = _pack(*weights), torch.randn(5, 256)
    assert [matrix.num_outputs for matrix in packed.matrices] == [128, 64]
    apart = [native(ISAS[-1]).linear(x, _pack(weight)) for weight in weights]
    assert torch.equal(native(ISAS[-1]).linear(x, packed), torch.cat(apart, dim=1))


@pytest.mark.parametrize("block_format", FORMATS)
def test_nan_and_infinity_stay_in_their_rows(block_format: str) -> None:
    packed, x = _pack(random_blocks(block_format, 40, 512)), torch.randn(5, 512)
    expected = native(ISAS[-1]).linear(x, packed)
    x[1, 300], x[3, 0] = torch.nan, -torch.inf
    for isa in ISAS:
        ours = native(isa).linear(x, packed)
        assert ours[[1, 3]].isnan().all()
        assert torch.equal(ours[[0, 2, 4]], expected[[0, 2, 4]])


@pytest.mark.parametrize("block_format", FORMATS)
def test_a_large_number_costs_accuracy_in_its_own_block_only(block_format: str) -> None:
    """One scale for the whole row, as int8 and int4 have, would round all other numbers to zero."""
    matrix, x = random_blocks(block_format, 64, 4096), torch.randn(3, 4096)
    x[:, 1000] = 1000.0
    ours, weights = native(ISAS[-1]).linear(x, _pack(matrix)), decoded(matrix)
    numbers = BLOCK_SIZES[block_format][0]
    spoiled = oracle.linear(x, weights) - oracle.linear(quantized_rows(x, block_format), weights)
    assert float(spoiled.norm()) < (numbers / 4096) ** 0.5 * float(torch.randn(3, 4096).norm())
    assert oracle.relative_error(ours, oracle.linear(quantized_rows(x, block_format), weights)) < ACCURACY


@pytest.mark.parametrize("isa", ISAS)
def test_matrices_of_any_formats_stand_one_below_the_other(isa: str) -> None:
    dim, x = 512, torch.randn(14, 512)
    weights: list[Weight] = [
        random_blocks("Q4_K", 64, dim, seed=1),
        random_blocks("Q4_K", 33, dim, seed=2),
        torch.randn(40, dim),
        random_blocks("Q8_0", 7, dim, seed=3),
    ]
    together = native(isa).pack_linear(*weights)
    assert [matrix.num_outputs for matrix in together.matrices] == [97, 40, 7]
    apart = [native(isa).linear(x, native(isa).pack_linear(weight)) for weight in weights]
    assert torch.equal(native(isa).linear(x, together), torch.cat(apart, dim=1))


def _experts(formats: tuple[str, str, str], dim: int, hidden: int) -> list[FfnWeights]:
    shapes = ((hidden, dim), (hidden, dim), (dim, hidden))
    return [
        FfnWeights(
            *(
                random_blocks(f, *shape, seed=3 * e + i)
                for i, (f, shape) in enumerate(zip(formats, shapes, strict=True))
            )
        )
        for e in range(4)
    ]


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("formats", MIXED, ids=str)
def test_experts_may_have_a_format_per_matrix(isa: str, dtype: torch.dtype, formats: tuple[str, str, str]) -> None:
    """Compared with float64 over the decoded weights, and row by row with themselves."""
    dim, hidden, num_rows = 256, 512, 30
    gate, experts = torch.randn(4, dim).to(dtype), _experts(formats, dim, hidden)
    x = torch.randn(num_rows, dim).to(dtype)
    packed = native(isa).pack_moe(gate, iter(experts))
    ours = native(isa, 2).moe(x, packed, uniform_request(num_rows, 2))
    exact = oracle.moe(x, gate, [_decoded_ffn(expert) for expert in experts], [2] * num_rows)
    assert oracle.relative_error(ours, exact) < 0.03  # three products with rows in int8
    alone = [native(isa).moe(row, packed, uniform_request(1, 2)) for row in x.split(1)]
    assert torch.equal(ours, torch.cat(alone))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("formats", MIXED, ids=str)
def test_experts_of_several_tiles_have_the_bits_of_single_rows(isa: str, formats: tuple[str, str, str]) -> None:
    """Each of four experts has some 75 of 150 rows: three tiles of 25 rows, or seven of at most 12."""
    gate, x = torch.randn(4, 256), torch.randn(150, 256)
    packed = native(isa).pack_moe(gate, iter(_experts(formats, 256, 512)))
    together = native(isa, 2).moe(x, packed, uniform_request(len(x), 2))
    alone = [native(isa).moe(row, packed, uniform_request(1, 2)) for row in x.split(1)]
    assert torch.equal(together, torch.cat(alone))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("formats", [MIXED[0], ("Q3_K", "Q5_0", "Q2_K"), ("IQ2_XXS", "IQ2_S", "IQ3_XXS")], ids=str)
def test_whole_tiles_of_an_expert_have_the_bits_of_single_rows(isa: str, formats: tuple[str, str, str]) -> None:
    packed = native(isa).pack_ffn(_experts(formats, 256, 512)[0])
    x = torch.randn(65, 256)
    alone = torch.cat([native(isa).ffn(row, packed) for row in x.split(1)])
    for count in (28, 33, 65):
        assert torch.equal(native(isa, 2).ffn(x[:count], packed), alone[:count]), count


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_experts_may_mix_blocks_with_plain_matrices(isa: str, dtype: torch.dtype) -> None:
    dim, hidden = 256, 512
    w1, w3 = random_blocks("Q4_K", hidden, dim), (torch.randn(hidden, dim) / 16).to(dtype)
    w2 = (torch.randn(dim, hidden) / 22).to(dtype)
    x = torch.randn(30, dim).to(dtype)
    for weights in (FfnWeights(w1, w3, w2), FfnWeights(w3, w1, random_blocks("Q6_K", dim, hidden))):
        packed = native(isa).pack_ffn(weights)
        ours = native(isa).ffn(x, packed)
        assert oracle.relative_error(ours, oracle.ffn(x, _decoded_ffn(weights))) < 0.03
        assert torch.equal(ours, torch.cat([native(isa).ffn(row, packed) for row in x.split(1)]))


def _decoded_ffn(weights: FfnWeights) -> FfnWeights:
    return FfnWeights(*(_decoded(weight) for weight in (weights.w1, weights.w3, weights.w2)))


def _decoded(weight: Weight) -> Tensor:
    return decoded(weight) if isinstance(weight, BlockMatrix) else weight


def test_every_block_format_has_the_librarys_code() -> None:
    header = " ".join((ROOT / "model" / "native" / "smoe_native.h").read_text().split())
    assert BLOCK_FORMATS["Q4_0"] == 4
    for name, code in BLOCK_FORMATS.items():
        assert f" {code} {name}" in header.replace("* ", "")


def test_a_backend_that_quantizes_takes_no_blocks() -> None:
    assert native(ISAS[0]).block_formats == set(FORMATS)
    assert not native(ISAS[0], quantization="int8").block_formats
