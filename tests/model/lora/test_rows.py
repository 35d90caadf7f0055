"""Low-rank terms in plain torch equal naive loops."""

import torch

from model.lora.adapter import Adapter, LowRank
from model.lora.rows import AdapterRows, terms_of_layer


def _naive(a: torch.Tensor, b: torch.Tensor, scale: float, x: torch.Tensor) -> list[float]:
    """Return scale * B (A x) of one row."""
    hidden = [sum(float(p) * float(q) for p, q in zip(row, x, strict=True)) for row in a]
    return [scale * sum(float(p) * q for p, q in zip(row, hidden, strict=True)) for row in b]


def _random(num_outputs: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(3, 5, generator=generator), torch.randn(num_outputs, 3, generator=generator)


def test_a_packed_term_gives_the_product_of_its_matrices() -> None:
    for num_outputs in (1, 31, 32, 33, 70):
        a, b = _random(num_outputs, num_outputs)
        x = torch.randn(2, 5, generator=torch.Generator().manual_seed(1))
        product = LowRank.packed(a, b, 0.5).product(x)
        expected = torch.tensor([_naive(a, b, 0.5, row) for row in x])
        torch.testing.assert_close(product, expected, rtol=1e-5, atol=1e-6)


def test_each_row_gets_the_terms_of_its_own_adapter_at_the_outputs_they_belong_to() -> None:
    first, second = _random(40, 1), _random(6, 2)
    adapters = (
        Adapter("1", ((LowRank.packed(*first, 2.0), None, None, None),)),
        Adapter("2", ((None, LowRank.packed(*second, 1.0, 40), None, None),)),
    )
    x, y = torch.randn(3, 5, generator=torch.Generator().manual_seed(3)), torch.ones(3, 50)
    rows = AdapterRows(adapters, torch.tensor([1, -1, 0]))
    terms = terms_of_layer(rows, 0).qkv
    assert terms is not None
    changed = terms.added_to(y, x)
    expected = y.clone()
    expected[0, 40:46] += torch.tensor(_naive(*second, 1.0, x[0]))
    expected[2, :40] += torch.tensor(_naive(*first, 2.0, x[2]))
    torch.testing.assert_close(changed, expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(y, torch.ones(3, 50)), "the product itself is unchanged"
