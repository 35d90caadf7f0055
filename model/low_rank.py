"""LoRA adapters (Hu et al. 2021) as low-rank terms of matrices, and the rows of a batch that they apply to.

A term of a matrix W [O, K] changes its product: y = W x + scale * B (A x), with A [r, K] and B [O, r]. Terms are
float32 or bfloat16, as the adapter's file has them; sums are float32, whatever the format of W.
Letters: T rows, L layers, E experts, r rank.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from model.cut import PANEL

NUM_ATTENTION_TERMS = 4  # of a layer: q, k, v and output; three of each expert follow: w1, w3 and w2
NUM_EXPERT_TERMS = 3


@dataclass(frozen=True)
class LowRank:
    """The term of one matrix."""

    a: Tensor  # [r, K]
    b: Tensor  # [ceil(O / PANEL), r, PANEL]: B by panels of outputs, zeros past the last output
    num_outputs: int  # O
    scale: float
    first_output: int = 0  # among the outputs of a product of several matrices, one below the other

    @classmethod
    def packed(cls, a: Tensor, b: Tensor, scale: float, first_output: int = 0) -> "LowRank":
        """Return the term of A [r, K] and B [O, r], which have one dtype."""
        padded = F.pad(b, (0, 0, 0, -len(b) % PANEL))
        panels = padded.view(-1, PANEL, b.shape[1]).transpose(1, 2).contiguous()
        return cls(a.contiguous(), panels, len(b), scale, first_output)

    @property
    def rank(self) -> int:
        return len(self.a)

    @property
    def num_bytes(self) -> int:
        return self.a.nbytes + self.b.nbytes

    def product(self, x: Tensor) -> Tensor:
        """Return scale * B (A x): [T, K] -> [T, O] float32."""
        b = self.b.transpose(1, 2).flatten(0, 1)[: self.num_outputs]  # [O, r]
        return F.linear(self.scale * F.linear(x.float(), self.a.float()), b.float())


@dataclass(frozen=True, eq=False)
class Adapter:
    """The terms of all layers. Two adapters with equal digests have equal terms."""

    digest: str  # SHA-256 of its files, in hex
    layers: tuple[tuple[LowRank | None, ...], ...]  # [L][NUM_ATTENTION_TERMS + NUM_EXPERT_TERMS * max(E, 1)]

    @property
    def num_bytes(self) -> int:
        return sum(term.num_bytes for layer in self.layers for term in layer if term is not None)


@dataclass(frozen=True)
class AdapterRows:
    """The adapters of a batch's rows."""

    adapters: tuple[Adapter, ...]  # distinct
    rows: Tensor  # [T] int64, index of each row's adapter; -1: none


@dataclass(frozen=True)
class RowTerms:
    """Terms of one product for each row: `count` of the layer's, from `first` on."""

    batch: AdapterRows
    layer: int
    first: int
    count: int

    def of_rows(self, indices: Tensor) -> "RowTerms":
        """Return the terms of rows `indices`, in that order."""
        rows = AdapterRows(self.batch.adapters, self.batch.rows[indices])
        return RowTerms(rows, self.layer, self.first, self.count)

    def of_expert(self, expert: int) -> "RowTerms":
        """Return the terms of one expert's w1, w3 and w2, of the terms of all experts."""
        return RowTerms(self.batch, self.layer, self.first + NUM_EXPERT_TERMS * expert, NUM_EXPERT_TERMS)

    def term(self, index: int) -> "RowTerms":
        """Return one of the terms."""
        return RowTerms(self.batch, self.layer, self.first + index, 1)

    def added_to(self, y: Tensor, x: Tensor) -> Tensor:
        """Return y [T, O] with the terms of each row of x [T, K], added in float32."""
        total = y.to(torch.float32, copy=True)
        for index, adapter in enumerate(self.batch.adapters):
            rows = (self.batch.rows == index).nonzero()[:, 0]
            for term in adapter.layers[self.layer][self.first : self.first + self.count]:
                if term is not None and len(rows):
                    columns = slice(term.first_output, term.first_output + term.num_outputs)
                    total[rows, columns] += term.product(x[rows])
        return total.to(y.dtype)


@dataclass(frozen=True)
class LayerTerms:
    """The rows' terms in one layer, by the product that they belong to; None: no row has an adapter."""

    qkv: RowTerms | None = None
    output: RowTerms | None = None
    ffn: RowTerms | None = None  # of all experts, or of the single FFN


NO_TERMS = LayerTerms()


def terms_of_layer(rows: AdapterRows | None, layer: int) -> LayerTerms:
    """Return the terms of a layer."""
    if rows is None:
        return NO_TERMS
    num_qkv, num_ffn = NUM_ATTENTION_TERMS - 1, len(rows.adapters[0].layers[layer]) - NUM_ATTENTION_TERMS
    return LayerTerms(
        RowTerms(rows, layer, 0, num_qkv),
        RowTerms(rows, layer, num_qkv, 1),
        RowTerms(rows, layer, NUM_ATTENTION_TERMS, num_ffn),
    )


def with_terms(y: Tensor, x: Tensor, terms: RowTerms | None) -> Tensor:
    """Return y [T, O], a product of x [T, K], with the low-rank terms of its rows."""
    return y if terms is None else terms.added_to(y, x)
