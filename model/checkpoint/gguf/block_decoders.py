"""Decode the blocks of GGUF tensors to float32, with the bits of ggml's own decoders. Imports numpy, no torch.

Each block holds groups of weights that share a scale, and in some types an offset: weight = scale * code - offset, two
roundings. Source of the layouts: ggml-common.h and ggml-quants.c of llama.cpp. Letters: B blocks, g groups in a block,
n weights in a group.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from model.checkpoint.gguf.block_types import BY_NAME
from model.checkpoint.gguf.code_books import code_book

Blocks = NDArray[np.void]  # [B], structured as in DECODERS
Bytes = NDArray[np.uint8]
Halves = NDArray[np.float16]
Codes = Bytes | NDArray[np.int8]
Floats = NDArray[np.float32]

# The 16 values of the types IQ4_NL and IQ4_XS.
IQ4_VALUES = np.array((-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113), np.int8)
# Eight signs of which an even number is minus, by the first seven.
EVEN_SIGNS = np.array([seven | seven.bit_count() % 2 << 7 for seven in range(128)], np.uint8)


@dataclass(frozen=True)
class Groups:
    """Contents of B blocks."""

    codes: Codes  # [B, g, n], or any shape of as many elements
    scales: Floats  # [B, g]
    offsets: Floats | None = None  # [B, g]


def decode_blocks(type_name: str, blocks: Bytes) -> Floats:
    """Decode blocks [B, bytes of a block] of a type of DECODERS to weights [B, weights of a block]."""
    layout, unpack = DECODERS[type_name]
    with np.errstate(all="ignore"):  # NaN and Inf are found by whoever checks the weights
        groups = unpack(blocks.view(layout)[:, 0])
        scales = groups.scales[..., None]  # [B, g, 1]
        weights = np.multiply(groups.codes.reshape(*groups.scales.shape, -1), scales, dtype=np.float32)  # [B, g, n]
        if groups.offsets is not None:
            weights -= groups.offsets[..., None]
    return weights.reshape(len(blocks), BY_NAME[type_name].block_len)


def _nibbles(packed: Bytes) -> Bytes:
    """Split bytes [..., m] into [..., 2, m]: all low halves, then all high halves."""
    codes = np.empty((*packed.shape[:-1], 2, packed.shape[-1]), np.uint8)
    np.bitwise_and(packed, 15, out=codes[..., 0, :])
    np.right_shift(packed, 4, out=codes[..., 1, :])
    return codes


def _pairs(packed: Bytes) -> Bytes:
    """Split bytes [B, m] into [B, 2 * m]: the low half of each, then its high half."""
    return _nibbles(packed[..., None]).reshape(len(packed), -1)


def _bits(packed: Bytes, width: int) -> Bytes:
    """Split bytes [..., m] into codes of `width` bits, [..., 8 / width, m], lowest bits first."""
    codes = np.empty((*packed.shape[:-1], 8 // width, packed.shape[-1]), np.uint8)
    for index in range(8 // width):
        np.right_shift(packed, index * width, out=codes[..., index, :])
    codes &= (1 << width) - 1
    return codes


def _float32(halves: Halves) -> Floats:
    return halves.astype(np.float32)


def _one_group(halves: Halves) -> Floats:
    """Return the scale of blocks that are one group: [B] -> [B, 1]."""
    return _float32(halves)[:, None]


def _signed(codes: Bytes, zero: int) -> NDArray[np.int8]:
    """Subtract the code of zero in place."""
    codes -= np.uint8(zero)  # wraps around; the bits are those of the signed difference
    return codes.view(np.int8)


def _q4_0(block: Blocks) -> Groups:
    return Groups(_signed(_nibbles(block["codes"]), 8), _one_group(block["scale"]))


def _q4_1(block: Blocks) -> Groups:
    return Groups(_nibbles(block["codes"]), _one_group(block["scale"]), -_one_group(block["least"]))


def _fifth_bits(block: Blocks) -> Bytes:
    """Return codes [B, 2, 16] of 5 bits. Bit i of the 32 high bits belongs to weight i."""
    codes = _nibbles(block["codes"])
    high = np.unpackbits(block["high"], axis=-1, bitorder="little").reshape(codes.shape)
    codes |= high << 4
    return codes


def _q5_0(block: Blocks) -> Groups:
    return Groups(_signed(_fifth_bits(block), 16), _one_group(block["scale"]))


def _q5_1(block: Blocks) -> Groups:
    return Groups(_fifth_bits(block), _one_group(block["scale"]), -_one_group(block["least"]))


def _q8_0(block: Blocks) -> Groups:
    return Groups(block["codes"], _one_group(block["scale"]))


def _q2_k(block: Blocks) -> Groups:
    factors = block["factors"]  # [B, 16]: a scale in the low half, an offset in the high half
    scales = _one_group(block["scale"]) * (factors & 15)
    offsets = _one_group(block["offset"]) * (factors >> 4)
    codes = _bits(block["codes"].reshape(-1, 2, 32), 2)  # [B, 2, 4, 32]
    return Groups(codes, scales.astype(np.float32), offsets.astype(np.float32))


def _q3_k(block: Blocks) -> Groups:
    packed = block["factors"]  # 16 scales of 6 bits: low 4 bits in 8 bytes, high 2 bits in 4 bytes
    low = _nibbles(packed[:, :8]).reshape(-1, 16)
    high = _bits(packed[:, 8:], 2).reshape(-1, 16)
    scales = _one_group(block["scale"]) * _signed(low | high << np.uint8(4), 32)
    codes = _bits(block["codes"].reshape(-1, 2, 32), 2).reshape(-1, 8, 32)
    codes |= _bits(block["high"], 1) << 2  # a high bit of 1 stands for 0, one of 0 for -4
    return Groups(_signed(codes, 4), scales.astype(np.float32))


def _six_bit_pairs(packed: Bytes) -> tuple[Bytes, Bytes]:
    """Unpack 8 scales and 8 offsets of 6 bits from 12 bytes: [B, 12] -> [B, 8] twice.

    Bytes 0-3 hold scales 0-3, bytes 4-7 offsets 0-3. Their top two bits, and the halves of bytes 8-11, are the others.
    """
    first, second, third = packed[:, :4], packed[:, 4:8], packed[:, 8:]
    scales = np.concatenate([first & 63, (third & 15) | (first >> 6) << 4], axis=1)
    offsets = np.concatenate([second & 63, (third >> 4) | (second >> 6) << 4], axis=1)
    return scales, offsets


def _scaled_pairs(block: Blocks) -> tuple[Floats, Floats]:
    scales, offsets = _six_bit_pairs(block["factors"])
    return _one_group(block["scale"]) * scales, _one_group(block["offset"]) * offsets


def _q4_k(block: Blocks) -> Groups:
    return Groups(_nibbles(block["codes"].reshape(-1, 4, 32)), *_scaled_pairs(block))


def _q5_k(block: Blocks) -> Groups:
    codes = _nibbles(block["codes"].reshape(-1, 4, 32)).reshape(-1, 8, 32)
    codes |= _bits(block["high"], 1) << 4
    return Groups(codes, *_scaled_pairs(block))


def _q6_k(block: Blocks) -> Groups:
    codes = _nibbles(block["codes"].reshape(-1, 2, 64)).reshape(-1, 2, 4, 32)
    codes |= _bits(block["high"].reshape(-1, 2, 32), 2) << 4
    return Groups(_signed(codes, 32), _one_group(block["scale"]) * block["factors"])


def _iq4_nl(block: Blocks) -> Groups:
    return Groups(IQ4_VALUES[_nibbles(block["codes"])], _one_group(block["scale"]))


def _iq4_xs(block: Blocks) -> Groups:
    high = (block["high"][:, None] >> np.arange(0, 16, 2, dtype=np.uint16) & 3).astype(np.uint8)  # [B, 8]
    scales = _one_group(block["scale"]) * _signed(_pairs(block["low"]) | high << np.uint8(4), 32)
    return Groups(IQ4_VALUES[_nibbles(block["codes"].reshape(-1, 8, 16))], scales)


def _with_signs(magnitudes: NDArray[np.int8], signs: Bytes) -> NDArray[np.int8]:
    """Apply a bit of `signs` [B, 32] to each of the magnitudes [B, codes, n]: 1 stands for minus."""
    minus = np.unpackbits(signs, axis=-1, bitorder="little").reshape(magnitudes.shape)
    return np.where(minus, -magnitudes, magnitudes)


def _odd(block: Blocks, factors: Bytes, unit: float) -> Floats:
    """Return the scales of groups, odd multiples of a unit."""
    return _one_group(block["scale"]) * (2 * factors + 1) * np.float32(unit)


def _sevens(words: NDArray[np.uint32]) -> tuple[Bytes, Bytes]:
    """Split words [B, 8] into four times eight signs of 28 bits, [B, 32], and the other 4 bits, [B, 8]."""
    sevens = words[..., None] >> np.arange(0, 28, 7, dtype=np.uint32) & 127
    return EVEN_SIGNS[sevens].reshape(len(words), -1), (words >> 28).astype(np.uint8)


def _iq3_s(block: Blocks) -> Groups:
    ninths = np.unpackbits(block["high"], axis=-1, bitorder="little").astype(np.uint16)
    magnitudes = code_book("IQ3_S")[block["codes"] | ninths << 8]
    return Groups(_with_signs(magnitudes, block["signs"]), _odd(block, _pairs(block["factors"]), 1))


def _iq3_xxs(block: Blocks) -> Groups:
    signs, factors = _sevens(block["words"])
    return Groups(_with_signs(code_book("IQ3_XXS")[block["codes"]], signs), _odd(block, factors, 0.25))


def _iq2_s(block: Blocks) -> Groups:
    high = _bits(block["high"][..., None], 2).reshape(-1, 32).astype(np.uint16)  # two bits of each code
    magnitudes = code_book("IQ2_S")[block["codes"] | high << 8]
    return Groups(_with_signs(magnitudes, block["signs"]), _odd(block, _pairs(block["factors"]), 0.125))


def _iq2_xs(block: Blocks) -> Groups:
    codes = block["codes"]  # 9 bits, and 7 bits of signs
    magnitudes = code_book("IQ2_XS")[codes & 511]
    return Groups(_with_signs(magnitudes, EVEN_SIGNS[codes >> 9]), _odd(block, _pairs(block["factors"]), 0.125))


def _iq2_xxs(block: Blocks) -> Groups:
    words = block["words"].reshape(-1, 8, 2)  # four codes, then signs and a scale
    signs, factors = _sevens(words[..., 1])
    codes = np.ascontiguousarray(words[..., 0]).view(np.uint8)
    return Groups(_with_signs(code_book("IQ2_XXS")[codes], signs), _odd(block, factors, 0.125))


def _layout(*fields: tuple[str, str, int]) -> np.dtype[np.void]:
    """Describe a block: name, type and count of each field, without gaps."""
    return np.dtype([(name, kind) if count == 1 else (name, kind, (count,)) for name, kind, count in fields])


SCALE, OFFSET, LEAST = ("scale", "<f2", 1), ("offset", "<f2", 1), ("least", "<f2", 1)

DECODERS: dict[str, tuple[np.dtype[np.void], Callable[[Blocks], Groups]]] = {
    "Q4_0": (_layout(SCALE, ("codes", "u1", 16)), _q4_0),
    "Q4_1": (_layout(SCALE, LEAST, ("codes", "u1", 16)), _q4_1),
    "Q5_0": (_layout(SCALE, ("high", "u1", 4), ("codes", "u1", 16)), _q5_0),
    "Q5_1": (_layout(SCALE, LEAST, ("high", "u1", 4), ("codes", "u1", 16)), _q5_1),
    "Q8_0": (_layout(SCALE, ("codes", "i1", 32)), _q8_0),
    "Q2_K": (_layout(("factors", "u1", 16), ("codes", "u1", 64), SCALE, OFFSET), _q2_k),
    "Q3_K": (_layout(("high", "u1", 32), ("codes", "u1", 64), ("factors", "u1", 12), SCALE), _q3_k),
    "Q4_K": (_layout(SCALE, OFFSET, ("factors", "u1", 12), ("codes", "u1", 128)), _q4_k),
    "Q5_K": (_layout(SCALE, OFFSET, ("factors", "u1", 12), ("high", "u1", 32), ("codes", "u1", 128)), _q5_k),
    "Q6_K": (_layout(("codes", "u1", 128), ("high", "u1", 64), ("factors", "i1", 16), SCALE), _q6_k),
    "IQ4_NL": (_layout(SCALE, ("codes", "u1", 16)), _iq4_nl),
    "IQ4_XS": (_layout(SCALE, ("high", "<u2", 1), ("low", "u1", 4), ("codes", "u1", 128)), _iq4_xs),
    "IQ3_S": (
        _layout(SCALE, ("codes", "u1", 64), ("high", "u1", 8), ("signs", "u1", 32), ("factors", "u1", 4)),
        _iq3_s,
    ),
    "IQ3_XXS": (_layout(SCALE, ("codes", "u1", 64), ("words", "<u4", 8)), _iq3_xxs),
    "IQ2_S": (
        _layout(SCALE, ("codes", "u1", 32), ("signs", "u1", 32), ("high", "u1", 8), ("factors", "u1", 8)),
        _iq2_s,
    ),
    "IQ2_XS": (_layout(SCALE, ("codes", "<u2", 32), ("factors", "u1", 8)), _iq2_xs),
    "IQ2_XXS": (_layout(SCALE, ("words", "<u4", 16)), _iq2_xxs),
}
