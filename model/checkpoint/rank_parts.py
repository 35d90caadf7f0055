"""The part of a checkpoint that one rank has: rows of each tensor, by its name (model/cut.py). Imports no torch."""

import re
from collections.abc import Mapping
from dataclasses import replace
from math import prod

from model.checkpoint.stored_tensor import PackedMatrix, StoredTensor, StoredWeight, rows_of
from model.checkpoint.tensor_names import EMBEDDING, FUSED_W2, FUSED_W13, HEAD
from model.cut import PANEL, Cut

_BY_HEAD = re.compile(r"self_attn\.[qkv]_proj\.weight$")
_BY_PANEL = re.compile(r"(self_attn\.o_proj|\.w[123]|mlp\.(gate|up|down)_proj)\.weight$")


def rank_rows(name: str, num_rows: int, num_kv_heads: int, cut: Cut) -> range:
    """Return which of the `num_rows` outputs of the matrix `name` the rank has: all of them if it is not cut.

    Of experts in one tensor, num_rows is that of one expert's matrix.
    """
    if cut.size == 1:
        return range(num_rows)
    if _BY_HEAD.search(name):
        return cut.part(num_rows, num_rows // num_kv_heads)
    is_cut = _BY_PANEL.search(name) or name == HEAD or name.endswith((FUSED_W13, FUSED_W2))
    return cut.part(num_rows, PANEL) if is_cut else range(num_rows)


def rank_shape(name: str, shape: tuple[int, ...], num_kv_heads: int, cut: Cut) -> tuple[int, ...]:
    """Return the shape of the rank's part of a tensor."""
    if cut.size == 1:  # asked for thousands of tensors in each of many plans
        return shape
    if name.endswith(FUSED_W13):  # w1 above w3: each is cut
        rows = 2 * len(rank_rows(name, shape[1] // 2, num_kv_heads, cut))
        return shape[0], rows, shape[2]
    axis = len(shape) - 2 if len(shape) > 1 else 0
    rows = len(rank_rows(name, shape[axis], num_kv_heads, cut))
    return *shape[:axis], rows, *shape[axis + 1 :]


class RankParts:
    """The tensors of a checkpoint, as far as one rank has them."""

    def __init__(self, stored: Mapping[str, StoredWeight], num_kv_heads: int, cut: Cut) -> None:
        self._stored = stored
        self._num_kv_heads = num_kv_heads
        self._cut = cut

    def __contains__(self, name: str) -> bool:
        return name in self._stored

    def rows(self, name: str) -> range:
        """Return the rows of a matrix, or all of another tensor; of a tied head those of the embedding."""
        return rank_rows(name, self._whole(name).shape[0], self._num_kv_heads, self._cut)

    def part(self, name: str) -> StoredWeight:
        """Return the tensor with the rank's rows only; whole if several tensors encode it."""
        tensor = self._whole(name)
        return tensor if isinstance(tensor, PackedMatrix) else rows_of(tensor, self.rows(name))

    def entry(self, name: str, index: int, matrix: int, num_matrices: int) -> StoredTensor:
        """Return the rank's rows of one matrix of one expert, in a tensor [E, num_matrices * O, D]."""
        tensor = self._stored[name]
        assert isinstance(tensor, StoredTensor)
        num_experts, num_rows, num_inputs = tensor.shape
        rows = rank_rows(name, num_rows // num_matrices, self._num_kv_heads, self._cut)
        first = index * num_rows + matrix * num_rows // num_matrices + rows.start
        return rows_of(replace(tensor, shape=(num_experts * num_rows, num_inputs)), range(first, first + len(rows)))

    def num_bytes(self) -> int:
        """Return the bytes of all parts in the files."""
        return sum(self._bytes_of(name, tensor) for name, tensor in self._stored.items())

    def _bytes_of(self, name: str, tensor: StoredWeight) -> int:
        if isinstance(tensor, PackedMatrix):
            return tensor.num_bytes
        part = rank_shape(name, tensor.shape, self._num_kv_heads, self._cut)
        return tensor.num_bytes * prod(part) // prod(tensor.shape)

    def _whole(self, name: str) -> StoredWeight:
        return self._stored.get(name) or self._stored[EMBEDDING]
