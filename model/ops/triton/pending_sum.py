"""Sums that the next kernel makes: parts of products, and the weighted outputs of experts.

A product that several programs share leaves one part for each; the experts leave one row for each pair (row, choice).
The kernel that needs the sum adds them in order, so that no kernel is launched for it. Letters as in
model/ops/interface.py; Kmax the largest number of experts of any row.
"""

from dataclasses import dataclass
from typing import TypeAlias

import torch
import triton
import triton.language as tl
from torch import Tensor

from model.ops.triton.launch import Launch, blocks, wait_for_inputs

# mypy: disable-error-code="untyped-decorator"


@dataclass(frozen=True)
class Parts:
    """Output [T, O] of a linear layer (Kmax is 1) or of experts, in parts."""

    values: Tensor  # [splits, T * Kmax, O] float32: the output of pair row * Kmax + choice is the sum over splits
    shares: Tensor | None  # [T, Kmax] float32: weights of the experts; None: a linear layer
    expert_ids: Tensor | None  # [T, Kmax] int32: entries below 0 have no output

    @property
    def max_k(self) -> int:
        return 1 if self.expert_ids is None else self.expert_ids.shape[1]

    @property
    def kind(self) -> str:
        return "linear" if self.expert_ids is None else "experts"


Pending: TypeAlias = Tensor | Parts


def pending_arguments(pending: Pending) -> tuple[Tensor, Tensor, Tensor, int, int, str]:
    """Return what `load_pending` takes: values, shares, expert ids, Kmax, splits, and the kind for KIND."""
    if isinstance(pending, Tensor):
        return pending, pending, pending, 1, 1, "sum"
    shares = pending.values if pending.shares is None else pending.shares
    expert_ids = pending.values if pending.expert_ids is None else pending.expert_ids
    return pending.values, shares, expert_ids, pending.max_k, len(pending.values), pending.kind


@triton.jit
def load_pending(
    pending: tl.tensor,
    shares: tl.tensor,
    expert_ids: tl.tensor,
    row: tl.tensor,
    columns: tl.tensor,
    inside: tl.tensor,
    num_rows: tl.tensor,
    num_columns: tl.tensor,
    max_k: tl.tensor,
    num_splits: tl.tensor,
    KIND: tl.constexpr,
    dtype: tl.constexpr,
) -> tl.tensor:
    """Return `columns` of a row of a pending sum, rounded to `dtype`. Outputs of absent experts are not read."""
    if KIND == "sum":
        total = tl.load(pending + row * num_columns + columns, mask=inside, other=0.0)
    elif KIND == "linear":
        total = load_splits(pending, row, columns, inside, num_rows, num_columns, num_splits)
    else:
        total = tl.zeros(columns.shape, dtype=tl.float32)
        for choice in range(max_k):
            pair = row * max_k + choice
            taken = tl.load(expert_ids + pair) >= 0
            read = inside & (columns < tl.where(taken, num_columns, 0))
            output = load_splits(pending, pair, columns, read, num_rows * max_k, num_columns, num_splits)
            total += tl.where(taken, tl.load(shares + pair) * output, 0.0)
    return total.to(dtype)


SUM_COLUMNS = 1024  # of a program


@triton.jit(do_not_specialize=["num_rows", "max_k", "num_splits"], do_not_specialize_on_alignment=["expert_ids"])
def sum_kernel(
    pending: tl.tensor,
    shares: tl.tensor,
    expert_ids: tl.tensor,
    total: tl.tensor,
    num_rows: tl.tensor,
    num_columns: tl.tensor,
    max_k: tl.tensor,
    num_splits: tl.tensor,
    KIND: tl.constexpr,
    BLOCK: tl.constexpr,
    EARLY: tl.constexpr = False,
) -> None:
    """Compute BLOCK columns of a row of a pending sum."""
    wait_for_inputs(EARLY)
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < num_columns
    value = load_pending(
        pending, shares, expert_ids, row, columns, inside, num_rows, num_columns, max_k, num_splits, KIND,
        total.dtype.element_ty,
    )  # fmt: skip
    tl.store(total + row * num_columns + columns, value, mask=inside)


def summed(launch: Launch, pending: Pending, dtype: torch.dtype) -> Tensor:
    """Add up the parts of an output: [T, O] in `dtype`."""
    if isinstance(pending, Tensor):
        return pending
    num_pairs, num_columns = pending.values.shape[1:]
    total = pending.values.new_empty(num_pairs // pending.max_k, num_columns, dtype=dtype)
    values, shares, expert_ids, max_k, num_splits, kind = pending_arguments(pending)
    launch(
        sum_kernel,
        (len(total), blocks(num_columns, SUM_COLUMNS)),
        *(values, shares, expert_ids, total, len(total), num_columns, max_k, num_splits),
        KIND=kind,
        BLOCK=SUM_COLUMNS,
        num_warps=4,
        num_stages=1,
    )
    return total


@triton.jit
def load_splits(
    parts: tl.tensor,
    row: tl.tensor,
    columns: tl.tensor,
    inside: tl.tensor,
    num_rows: tl.tensor,
    num_columns: tl.tensor,
    num_splits: tl.tensor,
) -> tl.tensor:
    """Add the parts [splits, num_rows, num_columns] of a row's columns, in order, in float32."""
    total = tl.zeros(columns.shape, dtype=tl.float32)
    for split in range(num_splits):
        place = (split * num_rows + row) * num_columns
        total += tl.load(parts + place + columns, mask=inside, other=0.0)
    return total
