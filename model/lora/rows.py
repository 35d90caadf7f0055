"""Rows of a batch that have LoRA adapters, and the terms of each product for them.

Letters: T rows, O outputs, K inputs of a product.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from model.lora.adapter import NUM_ATTENTION_TERMS, NUM_EXPERT_TERMS, Adapter


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
