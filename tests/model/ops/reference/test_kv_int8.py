"""int8 KV caches: backends store exactly the bytes of the definition, and attention reads what was stored."""

import random

import pytest
import torch
from torch import Tensor

from model.kv_pool import KvPool
from model.ops.reference.kv_int8 import dequantize, quantize
from model.ops.reference.ops import ReferenceOps
from tests.support.kernels import float64_oracle as oracle
from tests.support.kernels.attention_cases import Heads, Part, attend, random_positions
from tests.support.kernels.kv_tiles import in_rows
from tests.support.kernels.native_cases import DTYPES, ISAS, name_of, native
from tests.support.kernels.paged import CPU, Running, make_batch

HEADS = [Heads(4, 2, 16), Heads(1, 1, 4), Heads(6, 3, 128), Heads(8, 1, 24, window=257), Heads(4, 4, 80, window=7)]


def _naive_row(row: list[float]) -> tuple[list[int], float]:
    """Return bytes and scale of one row, computed number by number with Python floats."""
    largest = max(abs(number) for number in row)
    return [round(number * 127 / largest) for number in row], largest / 127


def test_the_definition_is_the_nearest_byte_of_the_rows_own_scale() -> None:
    rows = torch.randn(50, 3, 24) * torch.logspace(-6, 6, 50)[:, None, None]
    bytes_, scales = quantize(rows)[..., :-4], quantize(rows)[..., -4:].contiguous().view(torch.float32)
    for row, ours, scale in zip(rows.flatten(0, 1), bytes_.flatten(0, 1), scales.flatten(), strict=True):
        expected, expected_scale = _naive_row(row.tolist())
        assert scale.item() == pytest.approx(expected_scale, rel=1e-6)
        assert (ours - torch.tensor(expected)).abs().max() <= 1, "more than a tie apart"
        assert (dequantize(quantize(row)) - row).abs().max() <= 0.501 * expected_scale


def test_one_row_of_any_size_is_read_back() -> None:
    """The scale of one row is contiguous, wherever it begins."""
    for head_dim in range(1, 14):
        row = torch.randn(1, head_dim)
        assert (dequantize(quantize(row)) - row).abs().max() <= 0.501 * row.abs().max() / 127


@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf")])
def test_nan_or_infinity_makes_its_row_and_no_other_nan(number: float) -> None:
    rows = torch.randn(3, 2, 8)
    rows[1, 0, 5] = number
    read = dequantize(quantize(rows))
    assert read[1, 0].isnan().all()
    assert read.isnan().sum() == 8


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("cached", [torch.int8, torch.bfloat16], ids=str)
@pytest.mark.parametrize("block_size", [4, 32])
@pytest.mark.parametrize("heads", HEADS, ids=str)
def test_stored_bytes_are_the_definitions_rounding_of_the_rotated_rows(
    isa: str, dtype: torch.dtype, cached: torch.dtype, heads: Heads, block_size: int
) -> None:
    """Includes zeros, tiny and huge numbers, NaN and infinity. Unused slots stay unchanged."""
    batch = make_batch([(Running([0] * 40, list(range(1, 11)), 3), 30)], block_size)
    mixed = torch.randn(30, heads.num_heads + 2 * heads.num_kv_heads, heads.head_dim)
    mixed[3], mixed[4], mixed[5] = 0, 1e-35, 1e30
    mixed[6, -1, 1], mixed[7, -1, 0] = float("nan"), float("inf")
    exact, packed = (KvPool(heads.config, 11, block_size, name_of(kind), CPU) for kind in (dtype, cached))
    for pool in (exact, packed):
        metadata = native(isa).prepare_batch(heads.config, batch, block_size)
        q = native(isa).rope_and_store_kv(mixed.to(dtype).flatten(1), pool.k[0], pool.v[0], metadata)
        assert q.shape == (30, heads.num_heads, heads.head_dim)
        if native(isa).kv_layout(name_of(pool.k.dtype), block_size) == "tiles":
            pool.k[0], pool.v[0] = in_rows(pool.k[0], is_keys=True), in_rows(pool.v[0], is_keys=False)
    for ours, numbers in ((packed.k[0], exact.k[0]), (packed.v[0], exact.v[0])):
        expected = quantize(numbers) if cached == torch.int8 else numbers.to(cached)
        if cached == torch.int8:
            _assert_same_rows(ours, expected)
        else:
            assert torch.equal(ours.nan_to_num(), expected.nan_to_num())


def _assert_same_rows(ours: Tensor, expected: Tensor) -> None:
    """Compare bytes; only the scales of rows whose scale is NaN."""
    scales, expected_scales = (rows[..., -4:].contiguous().view(torch.float32) for rows in (ours, expected))
    assert torch.equal(scales.isnan(), expected_scales.isnan())
    readable = ~scales.isnan().squeeze(-1)
    assert torch.equal(ours[readable], expected[readable])


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("heads", HEADS, ids=str)
def test_attention_over_int8_caches_is_attention_over_their_dequantized_rows(
    isa: str, dtype: torch.dtype, heads: Heads
) -> None:
    cuts = [(0, 1), (255, 1), (256, 1), (0, 40), (250, 20), (600, 1)]
    parts = [
        Part(random_positions(first + rows, heads, dtype, seed), first, rows) for seed, (first, rows) in enumerate(cuts)
    ]
    exact = torch.cat(
        [
            oracle.attention(
                part.sequence.q[part.first :],
                *(dequantize(quantize(rows)) for rows in (part.sequence.k, part.sequence.v)),
                part.first,
                heads.window,
            )
            for part in parts
        ]
    )
    bound = 1e-5 if dtype == torch.float32 else 5e-3
    for ops in (native(isa), ReferenceOps()):
        ours = torch.cat(attend(ops, heads, parts, kv_dtype=torch.int8))
        assert oracle.relative_error(ours, exact) < bound


@pytest.mark.parametrize("isa", ISAS)
def test_int8_attention_gives_the_same_bits_in_any_chunks(isa: str) -> None:
    heads, rng = Heads(8, 2, 64, window=300), random.Random(0)
    sequence = random_positions(600, heads, torch.bfloat16, seed=0)
    [whole] = attend(native(isa), heads, [Part(sequence, 0, 600)], kv_dtype=torch.int8)
    for size in (1, 7, 255, 256, 257):
        for first in rng.sample(range(0, 600, size), min(3, -(-600 // size))):
            part = Part(sequence, first, min(size, 600 - first))
            [ours] = attend(native(isa, rng.choice((1, 2))), heads, [part], rng.choice((1, 16)), kv_dtype=torch.int8)
            assert torch.equal(ours, whole[first : first + part.num_rows]), (size, first)
