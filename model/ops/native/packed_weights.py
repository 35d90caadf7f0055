"""Weights in the layout of the native kernels, and how they are packed. Shape letters as in model/ops/interface.py."""

from collections.abc import Iterable, Iterator, Sequence
from ctypes import Array
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, groupby
from typing import TypeAlias

import torch
from torch import Tensor

from model.checkpoint.errors import UncodableError
from model.ops.huge_pages import empty
from model.ops.interface import FfnWeights
from model.ops.native.expert_store import ExpertStore
from model.ops.native.library import NativeLibrary, ThreadPool
from model.ops.native.structs import ExpertArguments, MatrixArguments
from model.ops.quantization import Quantization
from model.ops.weights import BLOCK_SIZES, SLICE_ROWS, BlockStream, TensorStream, Weight

DTYPES = {torch.float32: 0, torch.bfloat16: 1}  # codes of smoe_native.h
KV_DTYPES = DTYPES | {torch.int8: 2}
EMBEDDING_DTYPES = DTYPES | {torch.float16: 3}
QUANTIZED_FORMATS: dict[Quantization, int] = {"lossless": 64, "int8": 2, "int4": 3}  # of "none" it is the dtype
BLOCK_FORMATS = {name: 4 + index for index, name in enumerate(BLOCK_SIZES)}
PANEL = SLICE_ROWS  # outputs in a panel
Order: TypeAlias = Tensor | None  # of a matrix's inputs: BlockMatrix.order


@dataclass(frozen=True)
class NativeMatrix:
    """A packed [O, D] matrix: panels of PANEL outputs, `stride` bytes from one to the next."""

    panels: Tensor  # bytes
    num_outputs: int
    stride: int
    format: int
    order: Order = None

    def arguments(self) -> MatrixArguments:
        order = None if self.order is None else self.order.data_ptr()
        return MatrixArguments(self.panels.data_ptr(), self.num_outputs, self.stride, self.format, order)


@dataclass(frozen=True)
class NativeLinear:
    """Packed matrices one below the other, each in a format of its own: [O, D] together."""

    matrices: tuple[NativeMatrix, ...]
    num_inputs: int

    @property
    def num_outputs(self) -> int:
        return sum(matrix.num_outputs for matrix in self.matrices)

    @cached_property
    def arguments(self) -> Array[MatrixArguments]:
        return (MatrixArguments * len(self.matrices))(*(matrix.arguments() for matrix in self.matrices))


def num_plain(linears: Iterable[object]) -> int:
    """Return how many matrices of the linear layers are in a dtype's own format."""
    matrices = (matrix for linear in linears if isinstance(linear, NativeLinear) for matrix in linear.matrices)
    return sum(matrix.format in DTYPES.values() for matrix in matrices)


@dataclass(frozen=True)
class NativeExperts:
    """E packed SwiGLU FFNs, one after another; a dense layer has a single one.

    In an expert's part of w13 the panels of w1 and w3 alternate: w1's first, w3's first, w1's second, ...
    """

    w13: Tensor  # [E, bytes]
    w2: Tensor  # [E, bytes]
    formats: tuple[int, int, int]  # of w1, w3 and w2
    panel_sizes: tuple[int, int, int]  # bytes of a panel of w1, w3 and w2
    orders: list[tuple[Order, Order, Order]]  # [E] of w1, w3 and w2; w3's is w1's if they are equal
    num_experts: int
    dim: int  # inputs of w1 and w3
    hidden_dim: int  # inputs of w2
    num_hidden: int  # outputs of w1 and w3: hidden_dim, or a rank's part
    num_outputs: int  # outputs of w2: dim, or a rank's part
    store: ExpertStore | None = None  # None: the experts lie at their addresses
    stored_layer: int = 0  # number of their layer in the store

    def matrices(self, expert: int) -> tuple[NativeMatrix, NativeMatrix, NativeMatrix]:
        """Return views of one expert's w1, w3 and w2."""
        w13, w2 = self.w13[expert], self.w2[expert]
        (size1, size3, size2), (format1, format3, format2) = self.panel_sizes, self.formats
        order1, order3, order2 = self.orders[expert]
        return (
            NativeMatrix(w13, self.num_hidden, size1 + size3, format1, order1),
            NativeMatrix(w13[size1:], self.num_hidden, size1 + size3, format3, order3),
            NativeMatrix(w2, self.num_outputs, size2, format2, order2),
        )

    @cached_property
    def arguments(self) -> Array[ExpertArguments]:
        experts = (map(NativeMatrix.arguments, self.matrices(expert)) for expert in range(self.num_experts))
        return (ExpertArguments * self.num_experts)(*(ExpertArguments(*matrices) for matrices in experts))


@dataclass(frozen=True)
class NativeMoe:
    """Gate and experts. The gate stays in float32, so that its rounding does not decide which experts a token gets."""

    gate: Tensor  # [E, D] float32
    experts: NativeExperts


class WeightPacker:
    """Packs weights for the kernels of one instruction set, quantizing on the way those that are not in blocks."""

    def __init__(self, library: NativeLibrary, pool: ThreadPool, isa: int, quantization: Quantization) -> None:
        self._call = library.call
        self._pool = pool
        self._isa = isa
        self._quantization = quantization

    def pack_linear(self, weights: Sequence[Weight]) -> NativeLinear:
        """Pack weights [O, D] one below the other; neighbours of one format and order become one matrix."""
        groups = groupby(weights, lambda weight: (self._format(weight), _order_bytes(weight)))
        matrices = tuple(self._pack_matrix(_stack(list(group))) for _, group in groups)
        return NativeLinear(matrices, weights[0].shape[1])

    def pack_experts(self, num_experts: int, experts: Iterable[FfnWeights]) -> NativeExperts:
        """Pack `num_experts` FFNs of equal shapes and formats. No name keeps an expert while the next one is read."""
        iterator = iter(experts)
        packed = self._pack_expert(None, 0, num_experts, next(iterator))
        for index in range(1, num_experts):
            self._pack_expert(packed, index, num_experts, next(iterator))
        return packed

    def _pack_matrix(self, weight: Weight) -> NativeMatrix:
        """Pack a matrix, as plain bfloat16 if lossless weights cannot hold it, for which it is read whole."""
        code = self._format(weight)
        if code != QUANTIZED_FORMATS["lossless"]:
            return self._pack_as(code, weight)
        whole = weight if isinstance(weight, Tensor) else torch.cat([rows.clone() for rows in _slices(weight)])
        try:
            return self._pack_as(code, whole)
        except UncodableError:
            return self._pack_as(DTYPES[whole.dtype], whole)

    def _pack_as(self, code: int, weight: Weight) -> NativeMatrix:
        num_outputs, num_inputs = weight.shape
        size = self._call.smoe_panel_size(code, num_inputs)
        panels = empty(-(-num_outputs // PANEL) * size, torch.uint8)
        matrix = NativeMatrix(panels, num_outputs, size, code, _order(weight))
        self._pack(weight, matrix, "a matrix")
        return matrix

    def _pack_expert(
        self, packed: NativeExperts | None, index: int, num_experts: int, weights: FfnWeights
    ) -> NativeExperts:
        """Write one expert to its place in `packed`; allocate for all experts if it is the first."""
        packed = packed or self._allocate(num_experts, weights)
        order1, order3, order2 = _order(weights.w1), _order(weights.w3), _order(weights.w2)
        packed.orders[index] = order1, order1 if _equal(order1, order3) else order3, order2
        for weight, matrix in zip((weights.w1, weights.w3, weights.w2), packed.matrices(index), strict=True):
            assert self._format(weight) == matrix.format
            self._pack(weight, matrix, f"expert {index}")
        return packed

    def _allocate(self, num_experts: int, first: FfnWeights) -> NativeExperts:
        weights = first.w1, first.w3, first.w2
        (num_hidden, dim), (num_outputs, hidden_dim) = first.w1.shape, first.w2.shape
        format1, format3, format2 = map(self._format, weights)
        size1, size3, size2 = (self._call.smoe_panel_size(self._format(each), each.shape[1]) for each in weights)
        w13 = empty(num_experts * -(-num_hidden // PANEL) * (size1 + size3), torch.uint8)
        w2 = empty(num_experts * -(-num_outputs // PANEL) * size2, torch.uint8)
        formats, sizes = (format1, format3, format2), (size1, size3, size2)
        orders: list[tuple[Order, Order, Order]] = [(None, None, None)] * num_experts
        shape = dim, hidden_dim, num_hidden, num_outputs
        each = num_experts, -1
        return NativeExperts(w13.view(each), w2.view(each), formats, sizes, orders, num_experts, *shape)

    def _pack(self, weight: Weight, to: NativeMatrix, name: str) -> None:
        place = to.panels.data_ptr()
        for rows in _slices(weight):
            shape = rows.shape[0], weight.shape[1]
            if isinstance(weight, Tensor | TensorStream):
                kernel = self._pool.handle, self._isa, DTYPES[weight.dtype], to.format
                if self._call.smoe_pack(*kernel, rows.data_ptr(), place, to.stride, *shape):
                    raise UncodableError(name)
            else:
                self._call.smoe_pack_blocks(self._pool.handle, to.format, rows.data_ptr(), place, to.stride, *shape)
            place += rows.shape[0] // PANEL * to.stride

    def _format(self, weight: Weight) -> int:
        if isinstance(weight, Tensor | TensorStream):
            assert self._quantization != "lossless" or weight.dtype == torch.bfloat16
            return QUANTIZED_FORMATS.get(self._quantization, DTYPES[weight.dtype])
        return BLOCK_FORMATS[weight.format]


def _slices(weight: Weight) -> Iterator[Tensor]:
    """Yield contiguous rows of a weight in order, some at a time."""
    return iter((weight.contiguous(),)) if isinstance(weight, Tensor) else weight.slices()


def _stack(weights: Sequence[Weight]) -> Weight:
    """Join weights of one format and order, one below the other."""
    first = weights[0]
    if len(weights) == 1:
        return first
    slices: Iterator[Tensor] = chain.from_iterable(map(_slices, weights))
    if any(weight.shape[0] % PANEL for weight in weights[:-1]):  # some panel has outputs of two weights
        slices = iter((torch.cat([rows.clone() for rows in slices]),))
    shape = sum(weight.shape[0] for weight in weights), first.shape[1]
    if isinstance(first, Tensor | TensorStream):
        return TensorStream(first.dtype, shape, slices)
    return BlockStream(first.format, shape, slices, first.order)


def _order(weight: Weight) -> Order:
    return None if isinstance(weight, Tensor | TensorStream) else weight.order


def _order_bytes(weight: Weight) -> bytes:
    order = _order(weight)
    return b"" if order is None else order.numpy().tobytes()


def _equal(one: Order, other: Order) -> bool:
    return one is other or (one is not None and other is not None and torch.equal(one, other))
