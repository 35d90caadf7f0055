"""int8 and int4: the definition against naive loops, the native backend against the definition.

The native tests run on every instruction set of this machine.
"""

import itertools
import math

import pytest
import torch
from torch import Tensor

from model.ops.quantization import GROUP, Quantization, QuantizedMatrix, quantize, quantize_rows
from model.ops.reference.ops import ReferenceOps
from tests.support.checkpoints.random_weights import random_ffn
from tests.support.kernels import float64_oracle as oracle
from tests.support.kernels.native_cases import DTYPES, ISAS, native
from tests.support.routing_requests import random_request, uniform_request

KINDS: list[Quantization] = ["int8", "int4"]
ERROR = {"int8": 0.015, "int4": 0.12}  # relative error of a product of random numbers
# float32: roundings only. bfloat16: an output halfway between two of its numbers may be rounded either way, and so may
# all that is computed from it.
AGREEMENT = {torch.float32: 1e-6, torch.bfloat16: 6e-3}

on_every_isa = pytest.mark.parametrize("isa", ISAS)
of_every_kind = pytest.mark.parametrize("kind", KINDS)
in_every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


def _naive_row(numbers: list[float]) -> tuple[list[int], float]:
    """Return q and scale of a row, computed number by number."""
    largest = max(map(abs, numbers))
    return [round(number / largest * 127) for number in numbers], largest / 127


def _naive_product(x: Tensor, matrix: QuantizedMatrix) -> list[list[float]]:
    """Multiply integers by integers, in Python."""
    weights = matrix.weight().tolist()
    products = []
    for row in x.double().tolist():
        q, scale = _naive_row(row)
        products.append([math.fsum(a * b for a, b in zip(q, output, strict=True)) * scale for output in weights])
    return products


def test_rows_become_integers_of_their_largest_number() -> None:
    x = torch.randn(20, 50)
    q, scale = quantize_rows(x)
    for row, integers, size in zip(x.tolist(), q.tolist(), scale.flatten().tolist(), strict=True):
        naive, naive_scale = _naive_row(row)
        assert integers == naive
        assert size == pytest.approx(naive_scale, rel=1e-6)
        assert max(map(abs, integers)) == 127


@pytest.mark.parametrize("num_inputs", [1, 31, 32, 33, 100])
def test_int8_weights_are_off_by_half_a_step_at_most(num_inputs: int) -> None:
    weight = torch.randn(9, num_inputs)
    matrix = quantize(weight, "int8")
    assert ((matrix.weight() - weight).abs() <= matrix.scales.double() * 0.50001).all()


@pytest.mark.parametrize("num_inputs", [1, 31, 32, 33, 100])
def test_int4_weights_are_nearer_than_those_of_the_plain_scheme(num_inputs: int) -> None:
    """In the plain scheme each group has a real scale, and its number farthest from zero becomes -8."""
    weight = torch.randn(40, num_inputs)
    stored = quantize(weight, "int4").weight()
    ours_total = plain_total = 0.0
    for row, ours in zip(weight.tolist(), stored.tolist(), strict=True):
        for first in range(0, num_inputs, GROUP):
            group, mine = row[first : first + GROUP], ours[first : first + GROUP]
            step = max(group, key=abs) / -8
            plain = [step * min(7, max(-8, round(number / step))) for number in group]
            ours_total += sum((a - b) ** 2 for a, b in zip(group, mine, strict=True))
            plain_total += sum((a - b) ** 2 for a, b in zip(group, plain, strict=True))
    assert ours_total < (0.94 if num_inputs > 1 else 1) * plain_total + 1e-9


def _least_error(group: list[float]) -> float:
    """Try all factors and zero points with which 0 .. 15 become numbers of int8; `group` is in their unit."""
    errors = []
    for s, z in itertools.product(range(1, 16), range(16)):
        values = [s * (q - z) for q in range(16)]
        if min(values) >= -128 and max(values) <= 127:
            errors.append(sum(min((number - value) ** 2 for value in values) for number in group))
    return min(errors)


@pytest.mark.parametrize("shift", [0.0, 2.0, -2.0])
def test_int4_weights_are_nearly_as_near_as_any_factors_and_zero_points_make_them(shift: float) -> None:
    """`shift`: all numbers of a group may have one sign."""
    weight = torch.randn(20, 96) * torch.tensor([0.2, 1.0, 0.6]).repeat_interleave(32) + shift
    matrix = quantize(weight, "int4")
    steps, integers = weight / matrix.scales, matrix.integers()
    ours = float((steps - integers).square().sum())
    least = sum(_least_error(group) for row in steps.tolist() for group in (row[:32], row[32:64], row[64:]))
    assert least * 0.999 <= ours <= least * 1.02


def test_int4_weights_of_a_group_are_multiples_of_one_step() -> None:
    weight = torch.randn(9, 70)
    matrix = quantize(weight, "int4")
    assert torch.allclose(matrix.scales, weight.abs().amax(1, keepdim=True) / 120)
    assert matrix.factors is not None
    s, z = (matrix.factors & 15).int(), (matrix.factors >> 4).int()
    assert (s >= 1).all() and (s * z <= 128).all() and (s * (15 - z) <= 127).all(), "any q is a number of int8"
    assert not (matrix.integers().int() % s.repeat_interleave(GROUP, 1)[:, :70]).any()


@of_every_kind
@pytest.mark.parametrize("dim", [1, 30, 64, 101])
def test_the_reference_multiplies_integers_exactly(kind: Quantization, dim: int) -> None:
    x, weight = torch.randn(5, dim), torch.randn(7, dim)
    ops = ReferenceOps(kind)
    ours = ops.linear(x, ops.pack_linear(weight))
    assert torch.allclose(ours.double(), torch.tensor(_naive_product(x, quantize(weight, kind))).double(), rtol=1e-6)


SHAPES = [(1, 1, 1), (1, 33, 7), (2, 64, 32), (7, 31, 65), (12, 100, 48), (13, 32, 200), (70, 257, 129), (3, 40, 1030)]


@on_every_isa
@of_every_kind
@in_every_dtype
@pytest.mark.parametrize(("num_rows", "outputs", "dim"), SHAPES)
def test_native_products_are_the_references(
    isa: str, kind: Quantization, dtype: torch.dtype, num_rows: int, outputs: int, dim: int
) -> None:
    x, weight = torch.randn(num_rows, dim).to(dtype), torch.randn(outputs, dim).to(dtype)
    ours, reference = (
        ops.linear(x, ops.pack_linear(weight)) for ops in (native(isa, quantization=kind), ReferenceOps(kind))
    )
    assert oracle.relative_error(ours, reference) < AGREEMENT[dtype]
    assert oracle.relative_error(ours, oracle.linear(x, weight)) < ERROR[kind]


@on_every_isa
@of_every_kind
@in_every_dtype
@pytest.mark.parametrize(("num_rows", "dim", "hidden"), [(1, 1, 1), (1, 64, 96), (5, 24, 33), (70, 48, 100)])
def test_native_ffns_are_the_references(
    isa: str, kind: Quantization, dtype: torch.dtype, num_rows: int, dim: int, hidden: int
) -> None:
    x, weights = torch.randn(num_rows, dim).to(dtype), random_ffn(dim, hidden, dtype)
    ours, reference = (
        ops.ffn(x, ops.pack_ffn(weights)) for ops in (native(isa, quantization=kind), ReferenceOps(kind))
    )
    _assert_near(ours, reference, oracle.ffn(x, weights), kind, dtype)


@on_every_isa
@of_every_kind
@in_every_dtype
@pytest.mark.parametrize(
    ("num_rows", "dim", "hidden", "num_experts"), [(1, 32, 48, 8), (6, 24, 33, 4), (70, 40, 64, 8)]
)
def test_native_mixtures_are_the_references(
    isa: str, kind: Quantization, dtype: torch.dtype, num_rows: int, dim: int, hidden: int, num_experts: int
) -> None:
    """Rows of any k. The gate is not quantized, so the experts are those of unquantized weights."""
    x, gate = torch.randn(num_rows, dim).to(dtype), torch.randn(num_experts, dim).to(dtype)
    experts = [random_ffn(dim, hidden, dtype) for _ in range(num_experts)]
    requests = [random_request(num_rows, num_experts) for _ in range(3)]
    ours, reference, plain = (
        ops.moe(x, ops.pack_moe(gate, iter(experts)), request)
        for ops, request in zip(
            (native(isa, quantization=kind), ReferenceOps(kind), ReferenceOps()), requests, strict=True
        )
    )
    _assert_near(ours, reference, plain, kind, dtype)
    assert torch.equal(requests[0].expert_ids, requests[2].expert_ids)


def _assert_near(ours: Tensor, reference: Tensor, exact: Tensor, kind: str, dtype: torch.dtype) -> None:
    """A hidden number between two integers may be rounded either way, which changes one of many terms by a step."""
    assert oracle.relative_error(ours, reference) < max(AGREEMENT[dtype], 1e-3)
    assert oracle.relative_error(ours, exact.double()) < 3 * ERROR[kind]


@on_every_isa
@of_every_kind
def test_logits_are_float32_of_the_quantized_head(isa: str, kind: Quantization) -> None:
    x, head = torch.randn(9, 64).bfloat16(), torch.randn(101, 64).bfloat16()
    rows = torch.tensor([8, 0, 3])
    ours, reference = (
        ops.logits(x, rows, ops.pack_linear(head)) for ops in (native(isa, quantization=kind), ReferenceOps(kind))
    )
    assert ours.dtype == torch.float32
    assert oracle.relative_error(ours, reference) < AGREEMENT[torch.bfloat16]


@of_every_kind
@pytest.mark.parametrize("num_rows", [1, 12, 30])
def test_products_have_the_same_bits_on_every_instruction_set(kind: Quantization, num_rows: int) -> None:
    x, weight = torch.randn(num_rows, 333), torch.randn(70, 333)
    packed = native(ISAS[0], quantization=kind).pack_linear(weight)
    products = [native(isa).linear(x, packed) for isa in ISAS]
    for ours in products[1:]:
        assert torch.equal(ours, products[0])


@on_every_isa
@of_every_kind
def test_ties_between_two_integers_are_rounded_as_in_the_reference(isa: str, kind: Quantization) -> None:
    """The short mantissas of these numbers make many ties."""
    x, weight = torch.randint(-64, 65, (40, 96)) / 64.0, torch.randint(-64, 65, (50, 96)) / 64.0
    x *= torch.randint(1, 65, (40, 1)) / 64.0
    ours, reference = (
        ops.linear(x, ops.pack_linear(weight)) for ops in (native(isa, quantization=kind), ReferenceOps(kind))
    )
    assert oracle.relative_error(ours, reference) < 1e-6


@of_every_kind
@in_every_dtype
def test_packed_weights_are_the_same_bytes_on_every_instruction_set(kind: Quantization, dtype: torch.dtype) -> None:
    weight = torch.randn(70, 333).to(dtype)
    packed = [native(isa, quantization=kind).pack_linear(weight).matrices[0].panels for isa in ISAS]
    assert all(torch.equal(panels, packed[0]) for panels in packed)


@on_every_isa
@of_every_kind
@pytest.mark.parametrize("sign", [1, -1])
def test_the_largest_possible_sums_do_not_saturate(isa: str, kind: Quantization, sign: int) -> None:
    """All numbers at the ends of their ranges, over Mixtral's longest rows: 16,384. In int4 an output whose weights are
    all 1 has z = 0, all -1 z = 15, and both signs in turns z = 8."""
    weight, x = torch.ones(33, 16384), sign * torch.ones(13, 16384)
    weight[1::3] = -1
    weight[2::3, ::2] = -1
    x[1::2, ::2] *= -1
    ops = native(isa, quantization=kind)
    ours, exact = ops.linear(x, ops.pack_linear(weight)), x.double() @ quantize(weight, kind).weight().T
    assert torch.allclose(ours.double(), exact, rtol=1e-6, atol=1e-6)


@on_every_isa
@of_every_kind
@in_every_dtype
def test_a_row_of_zeros_gives_zeros_and_one_with_nan_or_infinity_gives_nan(
    isa: str, kind: Quantization, dtype: torch.dtype
) -> None:
    x, weight = torch.randn(14, 40).to(dtype), torch.randn(33, 40).to(dtype)
    x[1], x[2, 5], x[3, 39], x[4] = 0, math.nan, math.inf, 1e-37
    healthy = x.clone()
    healthy[2:4] = 0
    ops, reference = native(isa, quantization=kind), ReferenceOps(kind)
    packed, experts = ops.pack_linear(weight), [random_ffn(40, 24, dtype) for _ in range(4)]
    mixture, request = ops.pack_moe(torch.randn(4, 40).to(dtype), iter(experts)), uniform_request(14, 2)
    for function in (lambda rows: ops.linear(rows, packed), lambda rows: ops.moe(rows, mixture, request)):
        ours = function(x)
        assert ours.isnan().all(1).tolist() == [row in (2, 3) for row in range(14)]
        assert not ours[1].any() and not ours[4].any()
        others = torch.tensor([row not in (2, 3) for row in range(14)])
        assert torch.equal(ours[others], function(healthy)[others])
    assert reference.linear(x, reference.pack_linear(weight)).isnan().all(1).tolist() == [
        row in (2, 3) for row in range(14)
    ]


@on_every_isa
@of_every_kind
def test_a_weight_that_is_nan_or_infinite_affects_its_own_output_only(isa: str, kind: Quantization) -> None:
    weight = torch.randn(40, 70)
    weight[7, 33], weight[35, 2] = math.nan, math.inf
    for ops in (native(isa, quantization=kind), ReferenceOps(kind)):
        ours = ops.linear(torch.randn(3, 70), ops.pack_linear(weight))
        assert ours.isnan().any(0).nonzero().flatten().tolist() == [7, 35]
