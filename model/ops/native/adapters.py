"""Addresses of adapters' terms for the library: the arrays of smoe_low_rank in model/native/smoe_native.h."""

from ctypes import Array, addressof
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from model.lora.adapter import Adapter, LowRank
from model.lora.rows import AdapterRows, RowTerms
from model.ops.native.packed_weights import DTYPES
from model.ops.native.structs import LowRankArguments


class AdapterAddresses:
    """The arrays of all adapters that are in use. Each lives as long as its adapter."""

    def __init__(self) -> None:
        self._arrays: WeakKeyDictionary[Adapter, Array[LowRankArguments]] = WeakKeyDictionary()

    def of_rows(self, rows: AdapterRows) -> Tensor:
        """Return the address of each row's terms, [T] int64; 0: the row has no adapter. Valid while `rows` lives."""
        addresses = torch.tensor([*map(self._address, rows.adapters), 0])
        return addresses[rows.rows]  # -1 is the last one

    def of_terms(self, terms: RowTerms | None) -> tuple[Tensor | None, int]:
        """Return of_rows() of a product's terms, or None if it has none, and the index of its first term."""
        if terms is None:
            return None, 0
        terms_per_layer = len(terms.batch.adapters[0].layers[0])
        return self.of_rows(terms.batch), terms.layer * terms_per_layer + terms.first

    def _address(self, adapter: Adapter) -> int:
        array = self._arrays.get(adapter)
        if array is None:
            terms = [term for layer in adapter.layers for term in layer]
            array = self._arrays[adapter] = (LowRankArguments * len(terms))(*map(_arguments, terms))
        return addressof(array)


def pointer(addresses: Tensor | None) -> int | None:
    """Return what the library takes for these addresses."""
    return None if addresses is None else addresses.data_ptr()


def _arguments(term: LowRank | None) -> LowRankArguments:
    if term is None:
        return LowRankArguments()
    return LowRankArguments(
        a=term.a.data_ptr(),
        b=term.b.data_ptr(),
        rank=term.rank,
        dtype=DTYPES[term.a.dtype],
        first_output=term.first_output,
        outputs=term.num_outputs,
        scale=term.scale,
    )
