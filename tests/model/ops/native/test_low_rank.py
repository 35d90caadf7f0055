"""Low-rank terms equal a product in float64, and give each row the same bits whatever rows share its adapter."""

import random

import pytest
import torch
from torch import Tensor

from model.lora.adapter import NUM_EXPERT_TERMS, Adapter, LowRank
from model.lora.rows import AdapterRows, LayerTerms, terms_of_layer
from model.ops.interface import FfnWeights
from model.ops.quantization import Quantization
from tests.support.kernels.native_cases import DTYPES, ISAS, native
from tests.support.routing_requests import uniform_request

GROUPS = (1, 2, 3, 17, 4, 5)  # rows of each adapter; the rest has none
NUM_ROWS = 40
NUM_EXPERTS = 3

pytestmark = pytest.mark.parametrize("isa", ISAS)


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


def _term(rank: int, num_inputs: int, num_outputs: int, dtype: torch.dtype, first_output: int = 0) -> LowRank:
    a, b = torch.randn(rank, num_inputs) * num_inputs**-0.5, torch.randn(num_outputs, rank)
    return LowRank.packed(a.to(dtype), b.to(dtype), 0.5, first_output)


def _adapters(dim: int, hidden: int) -> list[Adapter]:
    """Return adapters of several ranks, types and sets of matrices; outputs of q, k and v: 32 + 16 + 16."""
    adapters = []
    for index, rank in enumerate((1, 5, 16, 8, 40, 20)):
        dtype = (torch.bfloat16, torch.float32)[index % 2]
        qkv = [_term(rank, dim, size, dtype, first) for size, first in ((32, 0), (16, 32), (16, 48))]
        of_expert = [_term(rank, dim, hidden, dtype), _term(rank, dim, hidden, dtype), _term(rank, hidden, dim, dtype)]
        terms: list[LowRank | None] = [*qkv, _term(rank, dim, dim, dtype), *of_expert * NUM_EXPERTS]
        for missing in range(index):
            terms[random.Random(missing).randrange(len(terms))] = None
        adapters.append(Adapter(str(index), (tuple(terms),)))
    return adapters


def _rows() -> Tensor:
    """Return each row's adapter: GROUPS rows of each in random order, and some without."""
    rows = [index for index, count in enumerate(GROUPS) for _ in range(count)]
    rows += [-1] * (NUM_ROWS - len(rows))
    random.Random(1).shuffle(rows)
    return torch.tensor(rows)


def _terms(adapters: list[Adapter], rows: Tensor) -> LayerTerms:
    return terms_of_layer(AdapterRows(tuple(adapters), rows), 0)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("rank", "num_inputs", "num_outputs", "first"),
    [
        (1, 3, 1, 0),
        (4, 8, 32, 0),
        (5, 40, 33, 64),
        (7, 1029, 70, 5),
        (12, 1100, 40, 0),
        (16, 2052, 64, 32),
        (90, 65, 40, 31),
    ],
)
def test_terms_equal_a_product_in_float64(
    isa: str, dtype: torch.dtype, rank: int, num_inputs: int, num_outputs: int, first: int
) -> None:
    """Beside a matrix of zeros, for A and B in both types, at outputs that panels do not share."""
    ops, x = native(isa), torch.randn(11, num_inputs).to(dtype)
    zeros = ops.pack_linear(torch.zeros(first + num_outputs + 3, num_inputs, dtype=dtype))
    for type_of_terms in DTYPES:
        term = _term(rank, num_inputs, num_outputs, type_of_terms, first)
        adapter = Adapter("1", ((None, term, None, None, *(None,) * NUM_EXPERT_TERMS),))
        found = ops.linear(x, zeros, _terms([adapter], torch.tensor([0] * 5 + [-1] + [0] * 5)).qkv).double()
        a, b = (matrix.double() for matrix in term.matrices)
        expected = torch.zeros_like(found)
        expected[:, first : first + num_outputs] = 0.5 * (x.double() @ a.T) @ b.T
        expected[5] = 0
        rounding = 2.0**-8 if dtype == torch.bfloat16 else 1e-6
        torch.testing.assert_close(found, expected, rtol=rounding, atol=3e-5)


@pytest.mark.parametrize("quantization", ["none", "int8"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_row_has_the_same_bits_alone_and_in_groups_of_any_size(
    isa: str, dtype: torch.dtype, quantization: Quantization
) -> None:
    """With 1, 2, 3, 4, 5 and 17 rows of an adapter among others and rows without, on two threads."""
    dim, hidden = 64, 96
    alone, together = native(isa, 1, quantization), native(isa, 2, quantization)
    adapters, rows = _adapters(dim, hidden), _rows()
    x = torch.randn(NUM_ROWS, dim).to(dtype)
    shapes = ((hidden, dim), (hidden, dim), (dim, hidden))
    weights = [FfnWeights(*(torch.randn(s).mul(s[1] ** -0.5).to(dtype) for s in shapes)) for _ in range(NUM_EXPERTS)]
    qkv, gate = alone.pack_linear(torch.randn(64, dim).mul(dim**-0.5).to(dtype)), torch.randn(NUM_EXPERTS, dim)
    moe = alone.pack_moe(gate, iter(weights))
    terms = _terms(adapters, rows)
    linear_rows = together.linear(x, qkv, terms.qkv)
    moe_rows = together.moe(x, moe, uniform_request(NUM_ROWS, 2), terms=terms.ffn)
    for row in range(NUM_ROWS):
        own = LayerTerms() if rows[row] < 0 else _terms(adapters, rows[row : row + 1])
        only = x[row : row + 1]
        assert torch.equal(alone.linear(only, qkv, own.qkv)[0], linear_rows[row]), row
        assert torch.equal(alone.moe(only, moe, uniform_request(1, 2), terms=own.ffn)[0], moe_rows[row]), row
    assert not torch.equal(linear_rows, together.linear(x, qkv))
