"""Paged attention against float64: windows, ratios of heads, decode rows beside chunks, cut and merged spans."""

import pytest
import torch

from model.ops.reference.kv_int8 import as_cached, as_numbers
from model.ops.triton.attention import attention as planning
from model.ops.triton.attention.attention import query_tiles
from model.ops.triton.ops import TritonOps
from tests.support.kernels import float64_oracle as oracle
from tests.support.kernels.attention_cases import Heads, Part, attend, random_positions
from tests.triton.cases import DTYPES, assert_close, both_tilings, in_blocks, integers, row_by_row

RATIOS = [(1, 1), (4, 1), (4, 2), (6, 2), (8, 8), (32, 8)]
WINDOWS = [None, 1, 17, 100, 256, 300]


def _random_parts(length: int, heads: Heads, dtype: torch.dtype, count: int, seed: int) -> list[Part]:
    sequence = random_positions(length, heads, dtype, seed)
    parts = []
    for index in range(count):
        num_rows = 1 if index % 2 else integers(1, 40)
        parts.append(Part(sequence, integers(0, length - num_rows), num_rows))
    return parts


def _check(ops: TritonOps, heads: Heads, parts: list[Part], dtype: torch.dtype, block_size: int, int8: bool) -> None:
    """Slots that no row may read are NaN (tests/support/kernels/native_cases.py), so that wrong reads show."""
    cached = torch.int8 if int8 else dtype
    outputs = attend(ops, heads, parts, block_size, seed=1, kv_dtype=cached, in_blocks=in_blocks)
    for part, ours in zip(parts, outputs, strict=True):
        end = part.first + part.num_rows
        k, v = (as_numbers(as_cached(t[:end], cached)) for t in (part.sequence.k, part.sequence.v))
        exact = oracle.attention(part.sequence.q[part.first : end], k, v, part.first, heads.window)
        assert_close(ours, exact, dtype, 10)


def _check_single_rows(*places: int) -> None:
    """Check one batch of decode rows, at these positions of a sequence."""
    heads = Heads(4, 2, 16)
    sequence = random_positions(600, heads, torch.float32, 0)
    parts = [Part(sequence, at, 1) for at in places]
    _check(TritonOps(torch.float32), heads, parts, torch.float32, 16, int8=False)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("head_dim", [64, 128])
def test_random_batches(dtype: torch.dtype, head_dim: int, scale: int) -> None:
    for case in range(6 * scale):
        num_heads, num_kv_heads = RATIOS[case % len(RATIOS)]
        heads = Heads(num_heads, num_kv_heads, head_dim, WINDOWS[integers(0, len(WINDOWS) - 1)])
        ops = TritonOps(dtype, deterministic=case % 2 == 1)
        parts = _random_parts(integers(60, 600), heads, dtype, integers(1, 4), seed=case)
        _check(ops, heads, parts, dtype, block_size=[1, 4, 16, 32][integers(0, 3)], int8=case % 3 == 2)


@pytest.mark.parametrize("window", [None, 17, 256])
def test_contexts_at_the_edges_of_spans_and_tiles(window: int | None) -> None:
    heads = Heads(2, 1, 16, window)
    sequence = random_positions(520, heads, torch.float32, 0)
    parts = [Part(sequence, at, 1) for at in (0, 15, 16, 63, 255, 256, 257, 511, 512)]
    parts += [Part(sequence, 250, 12), Part(sequence, 0, 5), Part(sequence, 510, 10)]
    for ops in both_tilings(torch.float32):
        _check(ops, heads, parts, torch.float32, 16, int8=False)


@pytest.mark.parametrize("head_dim", [20, 80])
def test_head_dims_that_are_not_powers_of_two(head_dim: int) -> None:
    heads = Heads(4, 2, head_dim, 50)
    parts = _random_parts(120, heads, torch.float32, 3, seed=0)
    _check(TritonOps(torch.float32), heads, parts, torch.float32, 16, int8=False)
    sequence = random_positions(16, heads, torch.float32, 1)
    for part in (Part(sequence, 15, 1), Part(sequence, 4, 12)):  # whose last key is the last row of the cache
        _check(TritonOps(torch.float32), heads, [part], torch.float32, 16, int8=False)


def test_a_batch_of_single_rows_needs_no_chunks() -> None:
    _check_single_rows(0, 300, 599)


def test_many_partials_are_merged_a_few_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning, "SHORTEST_SPLIT", 64)
    monkeypatch.setattr(planning, "MERGED_SPLITS", 4)
    _check_single_rows(599, 300, 64)


def test_few_programs_share_long_contexts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two for each row: splits of 304, 160 and 64 positions, where a span has 64."""
    monkeypatch.setattr(planning, "SHORTEST_SPLIT", 64)
    monkeypatch.setattr(planning, "TARGET_PROGRAMS", 12)
    _check_single_rows(599, 300, 64)


def test_single_rows_beside_chunks_are_not_computed_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning, "_attend_single_rows", lambda *arguments: None)
    heads = Heads(4, 2, 16)
    sequence = random_positions(40, heads, torch.float32, 0)
    parts = [Part(sequence, 20, 1), Part(sequence, 3, 4), Part(sequence, 30, 1)]
    outputs = attend(TritonOps(torch.float32), heads, parts)
    assert [bool(output.isnan().all()) for output in outputs] == [True, False, True]


def test_deterministic_rows_have_the_same_bits_as_decode_rows_and_within_any_chunk(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Tests the sums around the products; whether products depend on a row's index, only a GPU can show."""
    monkeypatch.setattr("numpy.matmul", row_by_row)
    heads = Heads(2, 1, 16, 400)
    sequence = random_positions(560, heads, torch.float32, 0)
    monkeypatch.setattr(planning, "SEPARATE_SPAN", 256)
    ops = TritonOps(torch.float32, deterministic=True)
    whole = attend(ops, heads, [Part(sequence, 500, 60)])[0]
    parts = [Part(sequence, 500, 1), Part(sequence, 501, 18), Part(sequence, 519, 40), Part(sequence, 559, 1)]
    assert torch.equal(torch.cat(attend(ops, heads, parts, seed=3)), whole)
    assert torch.equal(torch.cat([attend(ops, heads, [part])[0] for part in parts]), whole)


def test_tiles_cover_every_row_of_every_sequence_once() -> None:
    for _ in range(50):
        lengths = [integers(1, 20) for _ in range(integers(1, 9))]
        queries = integers(1, 8)
        start = torch.tensor([0, *torch.tensor(lengths).cumsum(0).tolist()], dtype=torch.int32)
        sequences, first_rows = query_tiles(start, sum(lengths), queries)
        rows = [
            row
            for sequence, first in zip(sequences.tolist(), first_rows.tolist(), strict=True)
            for row in range(first, min(first + queries, int(start[sequence + 1])))
        ]
        assert sorted(rows) == list(range(sum(lengths)))


def test_the_example_of_query_tiles() -> None:
    sequences, first_rows = query_tiles(torch.tensor([0, 5, 6], dtype=torch.int32), 6, 2)
    assert sequences.tolist() == [0, 0, 0, 1, 1] and first_rows.tolist() == [0, 2, 4, 5, 7]
