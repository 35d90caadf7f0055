"""A row's result depends on that row only: the same bits alone, in any batch, in any chunks, with any threads."""

import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from model.checkpoint.config_file import load_config
from model.kv_pool import KvPool
from model.loader import LoadOptions, load_model
from model.mixtral import Mixtral
from model.ops.interface import FfnWeights
from model.ops.native.ops import NativeOps
from model.ops.quantization import Quantization
from tests.support.checkpoints.mixtral import Shape, random_model, save_in_layout
from tests.support.kernels.attention_cases import Heads, Part, attend, random_positions
from tests.support.kernels.native_cases import DTYPES, ISAS, name_of, native
from tests.support.kernels.paged import CPU, Running, make_batch
from tests.support.routing_requests import random_request, routing_request, uniform_request

MAX_ROWS = 70
BATCHES = [*range(2, 28), 31, 32, 33, 47, 48, 49, 63, 64, 65, 70]

pytestmark = [pytest.mark.parametrize("isa", ISAS), pytest.mark.parametrize("dtype", DTYPES, ids=str)]

RowFunction = Callable[[NativeOps, Tensor], Tensor]


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


def _random(*shape: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(shape).mul(shape[-1] ** -0.5).to(dtype)


def _experts(count: int, dim: int, hidden: int, dtype: torch.dtype) -> list[FfnWeights]:
    return [
        FfnWeights(*(_random(*s, dtype=dtype) for s in ((hidden, dim), (hidden, dim), (dim, hidden))))
        for _ in range(count)
    ]


def _linear(dim: int, dtype: torch.dtype) -> RowFunction:
    packed = native(ISAS[0]).pack_linear(_random(75, dim, dtype=dtype))
    return lambda ops, rows: ops.linear(rows, packed)


def _linear_and_moe(packer: NativeOps, num_experts: int, dim: int, hidden: int, dtype: torch.dtype) -> RowFunction:
    """A linear layer and the best two of the experts, both packed by `packer`, side by side."""
    linear = packer.pack_linear(_random(75, dim, dtype=dtype))
    gate = torch.randn(num_experts, dim).to(dtype)
    moe = packer.pack_moe(gate, iter(_experts(num_experts, dim, hidden, dtype)))
    return lambda ops, rows: torch.cat((ops.linear(rows, linear), ops.moe(rows, moe, uniform_request(len(rows), 2))), 1)


def _ffn(dim: int, dtype: torch.dtype) -> RowFunction:
    packed = native(ISAS[0]).pack_ffn(_experts(1, dim, 71, dtype)[0])
    return lambda ops, rows: ops.ffn(rows, packed)


def _moe(k: int) -> Callable[[int, torch.dtype], RowFunction]:
    def make(dim: int, dtype: torch.dtype) -> RowFunction:
        gate, experts = torch.randn(8, dim).to(dtype), _experts(8, dim, 71, dtype)
        packed = native(ISAS[0]).pack_moe(gate, iter(experts))
        return lambda ops, rows: ops.moe(rows, packed, uniform_request(len(rows), k))

    return make


def _norm(dim: int, dtype: torch.dtype) -> RowFunction:
    weight = torch.rand(dim).to(dtype)
    return lambda ops, rows: ops.rms_norm(rows, weight, 1e-5)


def _logits(dim: int, dtype: torch.dtype) -> RowFunction:
    head = native(ISAS[0]).pack_linear(_random(75, dim, dtype=dtype))
    return lambda ops, rows: ops.logits(rows, torch.arange(len(rows)), head)


FUNCTIONS = {
    "linear": _linear,
    "ffn": _ffn,
    "top 1": _moe(1),
    "top 2": _moe(2),
    "dense": _moe(8),
    "norm": _norm,
    "head": _logits,
}


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("dim", [37, 256])
def test_a_row_gives_the_same_bits_alone_and_in_any_batch(isa: str, dtype: torch.dtype, name: str, dim: int) -> None:
    function, rows = FUNCTIONS[name](dim, dtype), torch.randn(MAX_ROWS, dim).to(dtype)
    alone = torch.cat([function(native(isa), row) for row in rows.split_with_sizes([1] * MAX_ROWS)])
    for threads in (1, 2):
        for count in BATCHES:
            some = torch.randperm(MAX_ROWS)[:count]
            assert torch.equal(function(native(isa, threads), rows[some]), alone[some]), (threads, count)


@pytest.mark.parametrize("dim", [37, 256])
def test_a_row_takes_the_same_experts_beside_rows_of_any_other_k_and_mask(
    isa: str, dtype: torch.dtype, dim: int
) -> None:
    rows, request = torch.randn(MAX_ROWS, dim).to(dtype), random_request(MAX_ROWS, 8)
    k, allowed = request.experts_per_token.tolist(), request.allowed
    assert allowed is not None
    packed = native(isa).pack_moe(torch.randn(8, dim).to(dtype), iter(_experts(8, dim, 71, dtype)))
    together = native(isa, 2).moe(rows, packed, request)
    for row in range(MAX_ROWS):
        alone = routing_request([k[row]], allowed[row : row + 1])
        assert torch.equal(native(isa).moe(rows[row : row + 1], packed, alone)[0], together[row])
        assert torch.equal(alone.expert_ids[0], request.expert_ids[row, : k[row]])


@pytest.mark.parametrize("name", ["linear", "ffn", "top 2"])
def test_a_float32_row_times_bfloat16_weights_gives_the_same_bits_alone_and_in_any_batch(
    isa: str, dtype: torch.dtype, name: str
) -> None:
    del dtype
    function, rows = FUNCTIONS[name](37, torch.bfloat16), torch.randn(MAX_ROWS, 37)
    alone = torch.cat([function(native(isa), row) for row in rows.split_with_sizes([1] * MAX_ROWS)])
    for count in BATCHES:
        some = torch.randperm(MAX_ROWS)[:count]
        assert torch.equal(function(native(isa, 2), rows[some]), alone[some]), count


@pytest.mark.parametrize("kind", ["none", "lossless", "int8", "int4"])
def test_a_row_gives_the_same_bits_among_more_rows_than_are_multiplied_together(
    isa: str, dtype: torch.dtype, kind: Quantization
) -> None:
    """300 rows are ten tiles of AMX, two groups of five; 299 and 67 rows are tiles of unequal numbers of rows."""
    dim, num_rows = 1100, 300
    packer = native(ISAS[0], quantization=kind)
    function = _linear_and_moe(packer, 2, dim, 300, torch.bfloat16 if kind == "lossless" else dtype)
    rows = torch.randn(num_rows, dim).to(dtype)
    few = native(isa)
    apart = torch.cat(
        [function(few, rows[first : first + 16]) for first in range(0, num_rows, 16)]
    )  # one tile at a time
    for threads, count in ((1, num_rows), (2, num_rows), (1, num_rows - 1), (2, 67)):
        some = torch.randperm(num_rows)[:count]
        assert torch.equal(function(native(isa, threads), rows[some]), apart[some]), (threads, count)


@pytest.mark.parametrize("kind", ["int8", "int4"])
@pytest.mark.parametrize("dim", [37, 256, 1100])  # 1100: several parts of a panel, and the rest
def test_a_row_times_quantized_weights_gives_the_same_bits_alone_and_in_any_batch(
    isa: str, dtype: torch.dtype, kind: Quantization, dim: int
) -> None:
    """Each row is quantized separately."""
    packer = native(ISAS[0], quantization=kind)
    function = _linear_and_moe(packer, 8, dim, 71, dtype)
    rows = torch.randn(MAX_ROWS, dim).to(dtype)
    alone = torch.cat([function(native(isa), row) for row in rows.split_with_sizes([1] * MAX_ROWS)])
    for threads in (1, 2):
        for count in BATCHES:
            some = torch.randperm(MAX_ROWS)[:count]
            assert torch.equal(function(native(isa, threads), rows[some]), alone[some]), (threads, count)


@pytest.mark.parametrize(
    "heads",
    [
        Heads(4, 2, 16),
        Heads(8, 1, 64),
        Heads(3, 3, 20),
        Heads(4, 1, 16, window=300),
        Heads(4, 4, 8, window=7),
        Heads(4, 2, 128, window=301),
    ],
    ids=str,
)
def test_attention_gives_the_same_bits_in_any_chunks_and_batch(isa: str, dtype: torch.dtype, heads: Heads) -> None:
    """Block sizes, and so the layout of the caches, block ids and threads vary with the chunks."""
    length = 600
    sequence = random_positions(length, heads, dtype, seed=0)
    [whole] = attend(native(isa), heads, [Part(sequence, 0, length)])
    rng = random.Random(0)
    for size in (1, 3, 7, 64, 255, 256, 257):
        firsts = range(0, length, size)
        for first in (
            firsts
            if len(firsts) < 10
            else sorted({0, 255, 256, 257, 511, 512, 599 // size * size, *rng.sample(firsts, 8)})
        ):
            rows = min(size, length - first)
            neighbours = [
                Part(random_positions(n, heads, dtype, seed=n), n - 1, 1)
                for n in rng.sample(range(1, 700), rng.randint(0, 6))
            ]
            parts = [*neighbours[:2], Part(sequence, first, rows), *neighbours[2:]]
            ours = attend(native(isa, rng.choice((1, 2))), heads, parts, rng.choice((1, 5, 16, 64)), seed=first)
            assert torch.equal(ours[min(2, len(neighbours))], whole[first : first + rows]), (size, first, len(parts))


@pytest.mark.parametrize("kv_dtype", [None, torch.int8], ids=["as queries", "int8"])
@pytest.mark.parametrize("head_dim", [24, 64])
def test_attention_gives_the_same_bits_however_many_rows_and_kv_heads_a_task_has(
    isa: str, dtype: torch.dtype, kv_dtype: torch.dtype | None, head_dim: int
) -> None:
    """A task takes 1 to 8 of the KV heads, which depends on threads and rows; int8 pairs are widened in two ways."""
    heads, length = Heads(16, 8, head_dim, window=330), 350
    sequences = [random_positions(length, heads, dtype, seed) for seed in range(9)]
    whole = [attend(native(isa), heads, [Part(each, 0, length)], kv_dtype=kv_dtype)[0] for each in sequences]
    for threads, count, rows in (
        (1, 1, 1),
        (1, 9, 1),
        (2, 1, 1),
        (2, 3, 1),
        (2, 9, 1),
        (3, 2, 3),
        (1, 2, 4),
        (2, 4, 9),
        (2, 5, 12),
        (2, 3, 24),
        (1, 2, 20),
    ):
        firsts = [(37 * threads + 51 * i) % (length - rows) for i in range(count)]
        firsts[0] = length - rows
        parts = [Part(each, first, rows) for each, first in zip(sequences, firsts, strict=False)]
        ours = attend(native(isa, threads), heads, parts, (16, 32, 5)[count % 3], seed=count, kv_dtype=kv_dtype)
        for rows_of_one, alone, first in zip(ours, whole, firsts, strict=False):
            assert torch.equal(rows_of_one, alone[first : first + rows]), (threads, count, rows)


def test_the_network_gives_the_same_bits_under_any_schedule(isa: str, dtype: torch.dtype, tmp_path: Path) -> None:
    """Random chunks of random sequences with one or two threads, against each sequence alone in one chunk."""
    seed = 2 * ISAS.index(isa) + DTYPES.index(dtype)
    window = (None, 16, None, 300)[seed % 4]
    shape = Shape(window=window, seed=seed)
    path = save_in_layout(random_model(shape), tmp_path)
    config, _ = load_config(path)
    loaded = load_model(path, config, native(isa), LoadOptions(dtype, CPU))
    models = [Mixtral(config, loaded.weights, native(isa, threads)) for threads in (1, 2)]
    rng = random.Random(seed)
    sequences = [[rng.randrange(shape.vocab_size) for _ in range(length)] for length in (1, 2, 19, 64, 131, 300, 530)]
    alone = [_scheduled([loaded], [ids], dtype, lambda run: len(run.token_ids), rng)[0] for ids in sequences]
    for _ in range(2):
        together = _scheduled(models, sequences, dtype, lambda run: rng.choice((0, 1, 1, 2, 7, 30, 64, 200)), rng)
        for ours, expected in zip(together, alone, strict=True):
            assert torch.equal(ours, expected)


def _scheduled(
    models: list[Mixtral],
    sequences: list[list[int]],
    dtype: torch.dtype,
    next_rows: Callable[[Running], int],
    rng: random.Random,
) -> list[Tensor]:
    """Return logits [length, V] of every sequence. A random model computes each step; all share their weights."""
    block_size = 4
    sizes = [-(-len(ids) // block_size) for ids in sequences]
    pool = KvPool(models[0].config, sum(sizes) + 1, block_size, name_of(dtype), CPU)
    pool.k.fill_(float("nan"))
    pool.v.fill_(float("nan"))
    block_ids = rng.sample(range(1, sum(sizes) + 1), sum(sizes))
    runs = [Running(ids, [block_ids.pop() for _ in range(size)]) for ids, size in zip(sequences, sizes, strict=True)]
    while unfinished := [run for run in runs if run.num_computed < len(run.token_ids)]:
        lengths = [(run, min(next_rows(run), len(run.token_ids) - run.num_computed)) for run in unfinished]
        parts = [part for part in lengths if part[1]]
        if not parts:
            continue
        rng.shuffle(parts)
        logits = rng.choice(models).forward(make_batch(parts, block_size), pool)
        for (run, length), rows in zip(parts, logits.split_with_sizes([length for _, length in parts]), strict=True):
            run.logits.append(rows)
            run.num_computed += length
    return [torch.cat(run.logits) for run in runs]
