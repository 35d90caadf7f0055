"""Each op of the native backend against float64, on every instruction set of this machine.

float32 must be correct to a few roundings; bfloat16 may have at most twice the error of the reference backend.
"""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from model.kv_pool import KvPool
from model.ops.interface import Ops
from model.ops.reference.ops import ReferenceOps
from tests.support.checkpoints.random_weights import random_ffn
from tests.support.kernels import float64_oracle as oracle
from tests.support.kernels.attention_cases import Heads, Part, Positions, attend, random_positions
from tests.support.kernels.native_cases import DTYPES, ISAS, name_of, native
from tests.support.kernels.paged import CPU, Running, make_batch
from tests.support.routing_requests import naive_top_k, random_request, uniform_request

EPS = 1e-5
FLOAT32_ERROR = 1e-6

pytestmark = [pytest.mark.parametrize("isa", ISAS), pytest.mark.parametrize("dtype", DTYPES, ids=str)]


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


def _both(isa: str) -> tuple[Ops, Ops]:
    return native(isa), ReferenceOps()


def _assert_close(ours: Tensor, reference: Tensor, exact: Tensor, dtype: torch.dtype) -> None:
    error = oracle.relative_error(ours, exact)
    if dtype == torch.float32:
        assert error < FLOAT32_ERROR
        assert torch.allclose(ours, reference, rtol=1e-4, atol=1e-5 * float(exact.abs().max()))
    else:
        assert error <= 2 * oracle.relative_error(reference, exact)


@pytest.mark.parametrize(("num_rows", "dim"), [(1, 1), (2, 7), (3, 64), (5, 1000), (40, 1024)])
def test_rms_norm(isa: str, dtype: torch.dtype, num_rows: int, dim: int) -> None:
    x, weight = (3 * torch.randn(num_rows, dim)).to(dtype), torch.rand(dim).to(dtype)
    ours, reference = native(isa).rms_norm(x, weight, EPS), ReferenceOps().rms_norm(x, weight, EPS)
    _assert_close(ours, reference, oracle.rms_norm(x, weight, EPS), dtype)


def test_sums_before_a_norm_have_the_bits_of_sum_then_norm_then_experts(isa: str, dtype: torch.dtype) -> None:
    """The sum is rounded to the dtype before it is normalized, on both backends."""
    x, pending = torch.randn(5, 40).to(dtype), torch.randn(5, 40).to(dtype)
    weight, gate = torch.rand(40).to(dtype), torch.randn(4, 40).to(dtype)
    experts = [random_ffn(40, 24, dtype) for _ in range(4)]
    for ops in _both(isa):
        before, sums = x.clone(), (x.float() + pending.float()).to(dtype)
        total, normed = ops.add_rms_norm(x, pending, weight, EPS)
        assert torch.equal(total, sums) and torch.equal(normed, ops.rms_norm(sums, weight, EPS))
        packed, together, apart = ops.pack_moe(gate, iter(experts)), uniform_request(5, 2), uniform_request(5, 2)
        total, mixed = ops.add_norm_moe(x, pending, weight, EPS, packed, together)
        assert torch.equal(total, sums) and torch.equal(mixed, ops.moe(normed, packed, apart))
        assert torch.equal(together.expert_ids, apart.expert_ids) and torch.equal(x, before)


def test_the_norm_of_a_row_of_zeros_is_zero(isa: str, dtype: torch.dtype) -> None:
    x = torch.zeros(2, 40, dtype=dtype)
    assert torch.equal(native(isa).rms_norm(x, torch.ones(40, dtype=dtype), EPS), x)


@pytest.mark.parametrize(
    ("num_rows", "outputs", "dim"),
    [(1, 1, 1), (1, 33, 7), (2, 64, 32), (7, 31, 65), (12, 100, 48), (13, 32, 200), (70, 257, 129)],
)
def test_linear(isa: str, dtype: torch.dtype, num_rows: int, outputs: int, dim: int) -> None:
    x, weight = torch.randn(num_rows, dim).to(dtype), torch.randn(outputs, dim).to(dtype)
    ours = native(isa).linear(x, native(isa).pack_linear(weight))
    _assert_close(ours, ReferenceOps().linear(x, weight), oracle.linear(x, weight), dtype)


@pytest.mark.parametrize(("num_rows", "dim", "hidden"), [(1, 1, 1), (1, 64, 96), (5, 24, 33), (70, 48, 100)])
def test_the_dense_ffn(isa: str, dtype: torch.dtype, num_rows: int, dim: int, hidden: int) -> None:
    x, weights = torch.randn(num_rows, dim).to(dtype), random_ffn(dim, hidden, dtype)
    ours, reference = (ops.ffn(x, ops.pack_ffn(weights)) for ops in _both(isa))
    _assert_close(ours, reference, oracle.ffn(x, weights), dtype)


@pytest.mark.parametrize(
    ("num_rows", "dim", "hidden", "num_experts", "k"),
    [(1, 8, 5, 1, 1), (1, 32, 48, 8, 2), (6, 24, 33, 4, 3), (33, 40, 64, 8, 1), (70, 32, 48, 8, 2), (9, 16, 20, 4, 4)],
)
def test_the_moe(isa: str, dtype: torch.dtype, num_rows: int, dim: int, hidden: int, num_experts: int, k: int) -> None:
    x, gate = torch.randn(num_rows, dim).to(dtype), torch.randn(num_experts, dim).to(dtype)
    experts = [random_ffn(dim, hidden, dtype) for _ in range(num_experts)]
    ours, reference = (
        ops.moe(x, ops.pack_moe(gate, iter(experts)), uniform_request(num_rows, k)) for ops in _both(isa)
    )
    _assert_close(ours, reference, oracle.moe(x, gate, experts, [k] * num_rows), dtype)


@pytest.mark.parametrize(("num_rows", "num_experts"), [(1, 4), (30, 3), (70, 8), (20, 33)])
def test_rows_of_any_k_under_any_masks_share_a_batch(
    isa: str, dtype: torch.dtype, num_rows: int, num_experts: int
) -> None:
    dim, hidden = 24, 33
    x, gate = torch.randn(num_rows, dim).to(dtype), torch.randn(num_experts, dim).to(dtype)
    experts = [random_ffn(dim, hidden, dtype) for _ in range(num_experts)]
    requests = [random_request(num_rows, num_experts, seed=num_rows) for _ in range(2)]
    k, allowed = requests[0].experts_per_token.tolist(), requests[0].allowed
    assert allowed is not None
    ours, reference = (
        ops.moe(x, ops.pack_moe(gate, iter(experts)), request)
        for ops, request in zip(_both(isa), requests, strict=True)
    )
    _assert_close(ours, reference, oracle.moe(x, gate, experts, k, allowed), dtype)
    logits = oracle.linear(x, gate).tolist()
    for row in range(num_rows):
        best = naive_top_k(logits[row], k[row], allowed[row].tolist())
        for request in requests:
            assert request.expert_ids[row].tolist() == best + [-1] * (request.expert_ids.shape[1] - k[row])


@pytest.mark.parametrize(("num_rows", "num_experts", "dim"), [(1, 8, 24), (300, 3, 24), (20, 33, 23)])
def test_reported_gate_logits_are_those_that_choose(
    isa: str, dtype: torch.dtype, num_rows: int, num_experts: int, dim: int
) -> None:
    x, gate = torch.randn(num_rows, dim).to(dtype), torch.randn(num_experts, dim).to(dtype)
    experts = [random_ffn(dim, 8, dtype) for _ in range(num_experts)]
    exact = oracle.linear(x, gate)
    for ops in _both(isa):
        packed, request = ops.pack_moe(gate, iter(experts)), uniform_request(num_rows, 2)
        logits = ops.gate_logits(x, packed)
        assert logits.dtype == torch.float32 and oracle.relative_error(logits, exact) < FLOAT32_ERROR
        ops.moe(x, packed, request)
        assert request.expert_ids.tolist() == [naive_top_k(row, 2, [True] * num_experts) for row in logits.tolist()]


@pytest.mark.parametrize("k", [1, 2, 3])
def test_ties_of_the_gate_go_to_the_lower_expert(isa: str, dtype: torch.dtype, k: int) -> None:
    """Four experts with the same gate: the result is the dense mixture of the first k alone, with equal shares."""
    dim, hidden = 16, 24
    x, row = torch.randn(5, dim).to(dtype), torch.randn(1, dim).to(dtype)
    experts = [random_ffn(dim, hidden, dtype) for _ in range(4)]
    ops = native(isa)
    request = uniform_request(5, k)
    ours = ops.moe(x, ops.pack_moe(row.repeat(4, 1), iter(experts)), request)
    assert request.expert_ids.tolist() == [list(range(k))] * 5
    assert torch.equal(ours, ops.moe(x, ops.pack_moe(row.repeat(k, 1), iter(experts[:k])), uniform_request(5, k)))


def test_logits_are_those_of_the_chosen_rows_in_float32(isa: str, dtype: torch.dtype) -> None:
    x, head = torch.randn(9, 64).to(dtype), torch.randn(101, 64).to(dtype)
    rows = torch.tensor([8, 0, 3])
    ours, reference = (ops.logits(x, rows, ops.pack_linear(head)) for ops in _both(isa))
    assert ours.dtype == torch.float32
    _assert_close(ours, reference, oracle.linear(x[rows], head), dtype)
    assert native(isa).logits(x, rows[:0], native(isa).pack_linear(head)).shape == (0, 101)


@pytest.mark.parametrize(("num_rows", "dim", "hidden"), [(1, 33, 7), (2, 64, 96), (13, 37, 40), (70, 256, 100)])
def test_float32_rows_are_rounded_before_bfloat16_weights_and_results_are_not(
    isa: str, dtype: torch.dtype, num_rows: int, dim: int, hidden: int
) -> None:
    del dtype
    ops, x = native(isa, 2), torch.randn(num_rows, dim)
    experts = [random_ffn(dim, hidden, torch.bfloat16) for _ in range(4)]
    linear, ffn = ops.pack_linear(experts[0].w1), ops.pack_ffn(experts[0])
    moe = ops.pack_moe(torch.randn(4, dim).bfloat16(), iter(experts))
    rounded = x.bfloat16()
    for wide, narrow in (
        (ops.linear(x, linear), ops.linear(rounded, linear)),
        (ops.ffn(x, ffn), ops.ffn(rounded, ffn)),
        (
            ops.moe(rounded.float(), moe, uniform_request(num_rows, 2)),
            ops.moe(rounded, moe, uniform_request(num_rows, 2)),
        ),
    ):
        assert wide.dtype == torch.float32 and not torch.equal(wide, narrow.float())
        assert torch.equal(wide.bfloat16(), narrow)


def test_embeddings_are_the_tables_rows(isa: str, dtype: torch.dtype) -> None:
    table, ids = torch.randn(20, 24).to(dtype), torch.tensor([3, 0, 19, 3])
    assert torch.equal(native(isa).embed(ids, table), table[ids])


@pytest.mark.parametrize("heads", [Heads(4, 2, 16), Heads(1, 1, 4), Heads(6, 3, 128), Heads(8, 1, 24)], ids=str)
def test_rotation_turns_q_and_k_and_writes_k_and_v_to_their_slots(isa: str, dtype: torch.dtype, heads: Heads) -> None:
    block_size, block_ids = 4, (torch.randperm(100) + 1).tolist()
    runs = [(Running([0] * 301, block_ids[:76], 300), 1), (Running([0] * 20, block_ids[76:81], 3), 17)]
    batch = make_batch(runs, block_size)
    mixed = torch.randn(18, heads.num_heads + 2 * heads.num_kv_heads, heads.head_dim).to(dtype)
    q, k, v = mixed.split_with_sizes([heads.num_heads, heads.num_kv_heads, heads.num_kv_heads], dim=1)
    pool = KvPool(heads.config, 101, block_size, name_of(dtype), CPU)
    metadata = native(isa).prepare_batch(heads.config, batch, block_size)
    q_rotated = native(isa).rope_and_store_kv(mixed.flatten(1), pool.k[0], pool.v[0], metadata)
    k_slots, v_slots = pool.k[0].flatten(0, 1), pool.v[0].flatten(0, 1)
    bound = 1e-5 if dtype == torch.float32 else 3e-3  # an angle near 300 is itself rounded to float32
    for ours, given in ((q_rotated, q), (k_slots[batch.slot_mapping], k)):
        assert oracle.relative_error(ours, oracle.rotate(given, batch.positions, heads.config.rope_theta)) < bound
    assert torch.equal(v_slots[batch.slot_mapping], v)
    others = torch.ones(len(k_slots), dtype=torch.bool).index_fill(0, batch.slot_mapping, False)
    assert not k_slots[others].any() and not v_slots[others].any(), "wrote to slots of other rows"


@pytest.mark.parametrize(
    ("heads", "block_size"),
    [
        (Heads(4, 2, 16), 16),
        (Heads(4, 4, 64, window=100), 16),
        (Heads(8, 1, 24, window=257), 3),
        (Heads(1, 1, 4, window=1), 1),
        (Heads(6, 3, 128, window=256), 32),
        (Heads(7, 1, 80), 512),
        (Heads(4, 2, 64), 24),  # blocks of rows that are larger than a tile
        (Heads(4, 2, 64), 40),
    ],
    ids=str,
)
def test_attention(isa: str, dtype: torch.dtype, heads: Heads, block_size: int) -> None:
    """Decode rows beside chunks, in front of, at and behind the edges of spans."""
    cuts = [(0, 1), (255, 1), (256, 1), (0, 40), (250, 20), (600, 1), (500, 30)]
    parts = [
        Part(random_positions(first + rows, heads, dtype, seed), first, rows) for seed, (first, rows) in enumerate(cuts)
    ]
    ours, reference = (torch.cat(attend(ops, heads, parts, block_size)) for ops in _both(isa))
    exact = [
        oracle.attention(p.sequence.q[p.first :], p.sequence.k, p.sequence.v, p.first, heads.window) for p in parts
    ]
    _assert_close(ours, reference, torch.cat(exact), dtype)


def test_attentions_output_is_rounded_to_the_dtype_that_is_given_and_to_no_other(isa: str, dtype: torch.dtype) -> None:
    heads = Heads(6, 3, 80)
    parts = [Part(random_positions(first + 5, heads, dtype, first), first, 5) for first in (0, 254, 600)]
    for ops in _both(isa):
        wide, narrow = (torch.cat(attend(ops, heads, parts, out_dtype=out)) for out in DTYPES)
        assert (wide.dtype, narrow.dtype) == (torch.float32, torch.bfloat16)
        assert torch.equal(wide.bfloat16(), narrow) and not torch.equal(wide, narrow.float())


def test_softmax_of_large_scores_does_not_overflow(isa: str, dtype: torch.dtype) -> None:
    heads = Heads(2, 1, 16)
    sequence = random_positions(300, heads, dtype, seed=0)
    large = Part(Positions(100 * sequence.q, sequence.k, sequence.v), 299, 1)
    [ours], [reference] = (attend(ops, heads, [large]) for ops in _both(isa))
    exact = oracle.attention(large.sequence.q[299:], sequence.k, sequence.v, 299, None)
    # Scores near 1,000, rounded to float32, leave an uncertainty of 1e-4 in a weight.
    assert oracle.relative_error(ours, exact) <= 2 * oracle.relative_error(reference, exact) + 1e-4


@pytest.mark.parametrize("num_rows", [1, 40])
def test_among_enormous_scores_the_largest_has_all_the_weight(isa: str, dtype: torch.dtype, num_rows: int) -> None:
    """Its weight is exactly 1, although a float32 score of 1e12 is rounded to multiples of 65,536."""
    heads, length = Heads(1, 1, 16), 300
    sequence = random_positions(length, heads, dtype, seed=0)
    first = length - num_rows
    enormous = Part(Positions(2.0**40 * sequence.q, sequence.k, sequence.v), first, num_rows)
    [ours] = attend(native(isa), heads, [enormous])
    scores = sequence.q[first:, 0].double() @ sequence.k[:, 0].double().T
    is_seen = torch.arange(length) <= torch.arange(first, length)[:, None]
    assert torch.equal(ours, sequence.v[scores.masked_fill(~is_seen, -torch.inf).argmax(1), 0])


def test_nan_in_a_row_stays_in_that_row(isa: str, dtype: torch.dtype) -> None:
    """The engine finds rows with NaN and fails only their requests."""
    ops, heads = native(isa), Heads(4, 2, 16)
    faulty, sound = (random_positions(280, heads, dtype, seed) for seed in range(2))
    faulty.k[270] = float("nan")
    together = attend(ops, heads, [Part(faulty, 265, 15), Part(sound, 265, 15), Part(faulty, 275, 1)])
    assert together[0].isnan().all(1).tolist() == [False] * 5 + [True] * 10
    assert together[2].isnan().all()
    assert torch.equal(together[1], attend(ops, heads, [Part(sound, 265, 15)])[0])
    x = torch.randn(14, 40).to(dtype)
    x[3] = float("nan")
    gate, experts = torch.randn(4, 40).to(dtype), [random_ffn(40, 24, dtype) for _ in range(4)]
    packed_linear, packed_moe = ops.pack_linear(torch.randn(33, 40).to(dtype)), ops.pack_moe(gate, iter(experts))
    healthy = x.clone()
    healthy[3] = 0
    functions: list[Callable[[Tensor], Tensor]] = [
        lambda rows: ops.linear(rows, packed_linear),
        lambda rows: ops.moe(rows, packed_moe, uniform_request(len(rows), 2)),
        lambda rows: ops.rms_norm(rows, torch.ones(40, dtype=dtype), EPS),
    ]
    for function in functions:
        with_nan, without = function(x), function(healthy)
        assert with_nan[3].isnan().all()
        rest = torch.arange(14) != 3
        assert torch.equal(with_nan[rest], without[rest])
