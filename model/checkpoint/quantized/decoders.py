"""Decode the parts of quantized matrices to float32, some outputs at a time. Imports numpy, no torch.

Parts arrive as arrays of their stored type, floats as float32, FP8 as bytes. Shape letters: O outputs, D inputs, G
groups of inputs that share a scale, r the outputs decoded at once.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from model.checkpoint.errors import CheckpointError
from model.checkpoint.quantized.parts import NESTED_BLOCK, num_groups
from model.checkpoint.stored_tensor import PackedMatrix

Array: TypeAlias = NDArray[Any]
Indices = NDArray[np.intp]
Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]
Parts: TypeAlias = Mapping[str, Array]
DecodeRows: TypeAlias = Callable[[int, int], Floats]  # first and last output (exclusive) -> [r, D]

ROW_STEP = 8  # first outputs are multiples of it: an AWQ word holds 8 outputs
AWQ_ORDER = (0, 4, 1, 5, 2, 6, 3, 7)  # which 4 bits of a word belong to outputs 0 .. 7


@dataclass(frozen=True)
class CodesInGroups:
    """A matrix whose weights are scale * (code - zero) or scale * code + minimum, by groups of inputs."""

    codes_of: Callable[[int, int], Bytes]  # first and last output (exclusive) -> [r, D]
    scales: Floats  # [O, G]
    zeros: Floats | None = None  # [O, G], whole numbers
    minima: Floats | None = None  # [O, G], if there are no zeros
    groups: Indices | None = None  # [D] group of each input; None: runs of inputs, in order

    def order(self) -> Indices | None:
        """Return the inputs [D], sorted by group; None if they are. Raises ValueError for groups of unequal sizes."""
        if self.groups is None:
            return None
        num_groups = self.scales.shape[1]
        order = np.argsort(self.groups, kind="stable")
        if not np.array_equal(self.groups[order], np.arange(len(order)) // (len(order) // num_groups)):
            raise ValueError("groups of unequal sizes")
        return order


def row_decoder(matrix: PackedMatrix, parts: Parts) -> DecodeRows:
    """Return the decoder of a matrix. Raises CheckpointError for parts that contradict each other."""
    if matrix.encoding.kind in GROUPED:
        return _scaled(_grouped(matrix, parts))
    return DECODERS[matrix.encoding.kind](matrix, parts)


def codes_in_groups(matrix: PackedMatrix, parts: Parts) -> CodesInGroups:
    """Return the codes of a matrix of a kind in GROUPED. Raises CheckpointError for groups of unequal sizes."""
    found = _grouped(matrix, parts)
    try:
        found.order()
    except ValueError as error:
        part = "weight_g_idx" if "weight_g_idx" in parts else "g_idx"
        raise _error(matrix, part, f"has {error}; --quantization int8 reads it") from None
    return found


def _grouped(matrix: PackedMatrix, parts: Parts) -> CodesInGroups:
    bias = parts.get("bias")
    if bias is not None and np.any(bias):
        raise _error(matrix, "bias", "is not zero; networks with biases are not supported")
    return GROUPED[matrix.encoding.kind](matrix, parts)


def _awq(matrix: PackedMatrix, parts: Parts) -> CodesInGroups:
    words = np.ascontiguousarray(_words(parts["qweight"]).T)  # [O / 8, D]
    zeros = np.full(parts["scales"].T.shape, 8, np.uint8)  # [O, G]
    if "qzeros" in parts:
        zeros = _awq_codes(np.ascontiguousarray(_words(parts["qzeros"]).T))
    return CodesInGroups(
        lambda first, last: _awq_codes(words[first // 8 : -(-last // 8)]),
        np.ascontiguousarray(parts["scales"].T),
        zeros.astype(np.float32),
    )


def _awq_codes(words: NDArray[np.uint32]) -> Bytes:
    """Unpack words [n, d] of 8 outputs each: [8 n, d]."""
    shifts = 4 * np.array(AWQ_ORDER, np.uint32)
    return (words[:, None, :] >> shifts[:, None] & 15).astype(np.uint8).reshape(-1, words.shape[1])


def _gptq(matrix: PackedMatrix, parts: Parts) -> CodesInGroups:
    encoding = matrix.encoding
    packed = np.ascontiguousarray(_words(parts["qweight"]).T).view(np.uint8)  # [O, D bits / 8]
    zeros = _unpacked(_words(parts["qzeros"]).view(np.uint8), encoding.bits).T.astype(np.float32)  # [O, G]
    zeros += encoding.zero_offset
    if not encoding.has_zeros:
        zeros = np.full_like(zeros, 1 << (encoding.bits - 1))
    return CodesInGroups(
        lambda first, last: _unpacked(packed[first:last], encoding.bits),
        np.ascontiguousarray(parts["scales"].T),
        np.ascontiguousarray(zeros),
        groups=_groups_of_inputs(matrix, parts, "g_idx"),
    )


def _compressed_tensors(matrix: PackedMatrix, parts: Parts) -> CodesInGroups:
    """Decode codes and zero points; both are stored with the same offset, which cancels out."""
    bits = matrix.encoding.bits
    if tuple(parts["weight_shape"].tolist()) != matrix.shape:
        raise _error(matrix, "weight_shape", f"is {parts['weight_shape'].tolist()}, not {list(matrix.shape)}")
    packed = _words(parts["weight_packed"]).view(np.uint8)  # [O, D bits / 8]
    zeros = np.full((matrix.shape[0], num_groups(matrix)), 1 << (bits - 1), np.float32)
    if matrix.has_plain_zeros:
        zeros += parts["weight_zero_point"]
    elif "weight_zero_point" in parts:
        words = np.ascontiguousarray(_words(parts["weight_zero_point"]).T)  # [G, O bits / 32]
        zeros = np.ascontiguousarray(_unpacked(words.view(np.uint8), bits).T.astype(np.float32))
    return CodesInGroups(
        lambda first, last: _unpacked(packed[first:last], bits),
        _floats(parts["weight_scale"]),
        zeros,
        groups=_groups_of_inputs(matrix, parts, "weight_g_idx"),
    )


def _mlx(matrix: PackedMatrix, parts: Parts) -> CodesInGroups:
    packed, bits = _words(parts["weight"]).view(np.uint8), matrix.encoding.bits
    return CodesInGroups(
        lambda first, last: _unpacked(packed[first:last], bits),
        _floats(parts["scales"]),
        minima=_floats(parts["biases"]),
    )


def _int8(matrix: PackedMatrix, parts: Parts) -> CodesInGroups:
    """Decode signed numbers as codes that are 128 higher, as zero points are then, and one group per output."""
    codes, scales = parts["weight"].view(np.uint8), _of_outputs(matrix, parts["weight_scale"])
    zeros = np.full_like(scales, 128)
    if "weight_zero_point" in parts:
        zeros += _of_outputs(matrix, parts["weight_zero_point"])
    return CodesInGroups(lambda first, last: codes[first:last] ^ np.uint8(128), scales, zeros)


def _fp8(matrix: PackedMatrix, parts: Parts) -> DecodeRows:
    codes, scales = parts["weight"], _of_outputs(matrix, parts["weight_scale"])

    def decode(first: int, last: int) -> Floats:
        weights: Floats = FP8_VALUES[codes[first:last]] * scales[first:last]
        return weights

    return decode


def _of_outputs(matrix: PackedMatrix, part: Array) -> Floats:
    """Return a number for each output [O, 1]; a file may have one for all."""
    return np.broadcast_to(_floats(part).reshape(-1, 1), (matrix.shape[0], 1)).copy()


def _fp8_blocks(matrix: PackedMatrix, parts: Parts) -> DecodeRows:
    codes, scales, encoding = parts["weight"], _floats(parts["weight_scale_inv"]), matrix.encoding
    columns = np.arange(matrix.shape[1]) // encoding.group_size

    def decode(first: int, last: int) -> Floats:
        rows = np.arange(first, last) // encoding.block_rows
        weights: Floats = FP8_VALUES[codes[first:last]] * scales[rows][:, columns]
        return weights

    return decode


def _bitsandbytes(matrix: PackedMatrix, parts: Parts) -> DecodeRows:
    num_inputs, size = matrix.shape[1], matrix.encoding.group_size
    packed, values = parts["weight"].reshape(-1), _floats(parts["weight.quant_map"])
    scales = _bitsandbytes_scales(matrix, parts)

    def decode(first: int, last: int) -> Floats:
        start, end = first * num_inputs, last * num_inputs
        pairs = packed[start // 2 : -(-end // 2)].astype(np.uint8)
        codes = np.stack((pairs >> 4, pairs & 15), axis=1).reshape(-1)[start % 2 :][: end - start]
        weights: Floats = values[codes] * scales[np.arange(start, end) // size]
        return weights.reshape(-1, num_inputs)

    return decode


def _bitsandbytes_scales(matrix: PackedMatrix, parts: Parts) -> Floats:
    """Return a scale for each block of weights; in nested files the scales are quantized as well."""
    scales = parts["weight.absmax"]
    if "weight.nested_absmax" not in parts:
        return _floats(scales)
    coarse = np.repeat(_floats(parts["weight.nested_absmax"]), NESTED_BLOCK)[: len(scales)]
    fine = _floats(parts["weight.nested_quant_map"])[scales.astype(np.intp)]
    nested: Floats = fine * coarse + np.float32(matrix.offset)
    return nested


def _scaled(found: CodesInGroups) -> DecodeRows:
    """Return a decoder of scale * (code - zero), or scale * code + minimum."""

    def decode(first: int, last: int) -> Floats:
        codes, scale = found.codes_of(first, last), found.scales[first:last]
        zero = np.zeros_like(scale) if found.zeros is None else found.zeros[first:last]
        if found.groups is not None:
            return (codes - zero[:, found.groups]) * scale[:, found.groups]
        wide = codes.reshape(*scale.shape, -1)  # [r, G, D / G]
        weights = np.subtract(wide, zero[..., None], dtype=np.float32)
        weights *= scale[..., None]
        if found.minima is not None:
            weights += found.minima[first:last, :, None]
        return weights.reshape(last - first, -1)

    return decode


def _groups_of_inputs(matrix: PackedMatrix, parts: Parts, name: str) -> Indices | None:
    """Return the group of each input [D]; None if groups are runs of inputs, in order."""
    if name not in parts:
        return None
    groups, count = parts[name].astype(np.intp), num_groups(matrix)
    if np.all(groups == -1) or np.array_equal(groups, np.arange(len(groups)) // (len(groups) // count)):
        return None
    if groups.min() < 0 or groups.max() >= count:
        raise _error(matrix, name, f"names a group that is not one of {count}")
    return groups


def _unpacked(packed: Bytes, bits: int) -> Bytes:
    """Unpack codes of `bits` bits from bytes [n, m], lowest bits first: [n, 8 m / bits]. They may cross bytes."""
    if bits == 8:
        return packed
    if 8 % bits:
        stream = np.unpackbits(packed, axis=1, bitorder="little").reshape(len(packed), -1, bits)
        return np.packbits(stream, axis=2, bitorder="little")[..., 0]
    per_byte = 8 // bits
    codes = np.empty((*packed.shape, per_byte), np.uint8)
    for index in range(per_byte):
        np.right_shift(packed, index * bits, out=codes[..., index])
    codes &= (1 << bits) - 1
    return codes.reshape(len(packed), -1)


def _words(part: Array) -> NDArray[np.uint32]:
    return part.view(np.uint32)


def _floats(part: Array) -> Floats:
    return part.astype(np.float32, copy=False)


def _error(matrix: PackedMatrix, part: str, message: str) -> CheckpointError:
    tensor = matrix.parts[part]
    return CheckpointError(f"{tensor.file}: tensor {tensor.name} {message}")


def _fp8_values() -> Floats:
    """Return the values of the 256 codes of float8_e4m3fn: sign, 4 bits of exponent, 3 of fraction; no infinity."""
    codes = np.arange(256)
    exponent, fraction = codes >> 3 & 15, codes & 7
    magnitude = np.where(exponent == 0, fraction / 8 * 2.0**-6, (1 + fraction / 8) * 2.0 ** (exponent - 7.0))
    magnitude[codes & 127 == 127] = np.nan
    return np.where(codes < 128, magnitude, -magnitude).astype(np.float32)


FP8_VALUES = _fp8_values()
GROUPED: dict[str, Callable[[PackedMatrix, Parts], CodesInGroups]] = {
    "awq": _awq,
    "gptq": _gptq,
    "compressed-tensors": _compressed_tensors,
    "int8": _int8,
    "mlx": _mlx,
}
DECODERS: dict[str, Callable[[PackedMatrix, Parts], DecodeRows]] = {
    "fp8": _fp8,
    "fp8-blocks": _fp8_blocks,
    "bitsandbytes": _bitsandbytes,
}
