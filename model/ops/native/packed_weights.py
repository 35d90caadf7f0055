"""Weights in the layout of the native kernels, and how they are packed. Shape letters as in model/ops/interface.py."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from model.ops.huge_pages import empty
from model.ops.interface import FfnWeights
from model.ops.native.library import NativeLibrary, ThreadPool
from model.ops.quantization import Quantization

DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.int8: 2}  # codes of smoe_native.h; int8 is for KV caches
QUANTIZED_FORMATS: dict[Quantization, int] = {"int8": 2, "int4": 3}  # an unquantized weight's format is its dtype


@dataclass(frozen=True)
class NativeLinear:
    """A packed [O, D] matrix."""

    panels: Tensor  # bytes
    format: int
    num_outputs: int
    num_inputs: int


@dataclass(frozen=True)
class NativeExperts:
    """E packed SwiGLU FFNs, one after another; a dense layer has a single one."""

    w13: Tensor  # bytes
    w2: Tensor  # bytes
    format: int
    num_experts: int
    dim: int
    hidden_dim: int


@dataclass(frozen=True)
class NativeMoe:
    """Gate and experts. The gate stays in float32, so that its rounding does not decide which experts a token gets."""

    gate: Tensor  # [E, D] float32
    experts: NativeExperts


class WeightPacker:
    """Packs weights for the kernels of one instruction set, quantizing them on the way."""

    def __init__(self, library: NativeLibrary, pool: ThreadPool, isa: int, quantization: Quantization) -> None:
        self._call = library.call
        self._pool = pool
        self._isa = isa
        self._quantization = quantization

    def pack_linear(self, weight: Tensor) -> NativeLinear:
        """Pack weight [O, D]."""
        num_outputs, num_inputs = weight.shape
        code, weight = self._format(weight.dtype), weight.contiguous()
        panels = empty(self._call.smoe_packed_size(code, num_outputs, num_inputs), torch.uint8)
        kernel = self._pool.handle, self._isa, DTYPES[weight.dtype], code
        self._call.smoe_pack(*kernel, weight.data_ptr(), panels.data_ptr(), num_outputs, num_inputs)
        return NativeLinear(panels, code, num_outputs, num_inputs)

    def pack_experts(self, num_experts: int, experts: Iterable[FfnWeights]) -> NativeExperts:
        """Pack `num_experts` FFNs of equal shape. No name keeps an expert alive while the next one is read."""
        iterator = iter(experts)
        packed = self._pack_expert(None, 0, num_experts, next(iterator))
        for index in range(1, num_experts):
            self._pack_expert(packed, index, num_experts, next(iterator))
        return packed

    def _pack_expert(
        self, packed: NativeExperts | None, index: int, num_experts: int, weights: FfnWeights
    ) -> NativeExperts:
        """Write one expert to its place in `packed`; allocate for all experts if it is the first."""
        (hidden_dim, dim), code = weights.w1.shape, self._format(weights.w1.dtype)
        w13_size = self._call.smoe_packed_pair_size(code, hidden_dim, dim)
        w2_size = self._call.smoe_packed_size(code, dim, hidden_dim)
        if packed is None:
            w13, w2 = (empty(num_experts * size, torch.uint8) for size in (w13_size, w2_size))
            packed = NativeExperts(w13, w2, code, num_experts, dim, hidden_dim)
        w1, w3, w2 = (weight.contiguous() for weight in (weights.w1, weights.w3, weights.w2))
        up = w1.data_ptr(), w3.data_ptr(), packed.w13[index * w13_size :].data_ptr()
        down = w2.data_ptr(), packed.w2[index * w2_size :].data_ptr()
        kernel = self._pool.handle, self._isa, DTYPES[w1.dtype], code
        self._call.smoe_pack_pair(*kernel, *up, hidden_dim, dim)
        self._call.smoe_pack(*kernel, *down, dim, hidden_dim)
        return packed

    def _format(self, dtype: torch.dtype) -> int:
        return QUANTIZED_FORMATS.get(self._quantization, DTYPES[dtype])
