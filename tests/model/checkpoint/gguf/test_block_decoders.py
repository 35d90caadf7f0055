"""Decoders of GGUF blocks give the bits of the `gguf` package, llama.cpp's own reader, for every type."""

import gguf
import numpy as np
import pytest
from numpy.typing import NDArray

from model.checkpoint.gguf.block_decoders import DECODERS, decode_blocks
from model.checkpoint.gguf.block_types import BLOCK_TYPES, BY_NAME, UNSUPPORTED_TYPES
from model.checkpoint.gguf.code_books import MAGNITUDES, code_book


def _oracle(name: str, blocks: NDArray[np.uint8]) -> NDArray[np.float32]:
    with np.errstate(all="ignore"):
        return gguf.quants.dequantize(blocks, gguf.GGMLQuantizationType[name])


def _bits(weights: NDArray[np.float32]) -> NDArray[np.uint32]:
    return np.where(np.isnan(weights), np.float32(np.nan), weights).view(np.uint32)


@pytest.mark.parametrize("name", DECODERS)
def test_random_blocks_decode_to_the_same_bits(name: str, scale: int) -> None:
    """Random bytes contain every code, and NaN, Inf and subnormal scales."""
    rng = np.random.default_rng(sum(map(ord, name)))
    blocks = rng.integers(0, 256, (3000 * scale, BY_NAME[name].block_bytes), np.uint8)
    assert np.array_equal(_bits(decode_blocks(name, blocks)), _bits(_oracle(name, blocks)))


@pytest.mark.parametrize("name", DECODERS)
def test_every_byte_of_a_block_decodes_to_the_same_bits(name: str) -> None:
    """Each byte in turn is each of eight patterns, over blocks of all zeros and of finite noise."""
    num_bytes = BY_NAME[name].block_bytes
    noise = np.random.default_rng(1).integers(0, 0x40, num_bytes, np.uint8)
    edges = np.array([0, 1, 0x0F, 0x10, 0x3F, 0x40, 0x80, 0xFF], np.uint8)
    blocks = np.repeat(np.stack([np.zeros(num_bytes, np.uint8), noise]), num_bytes * len(edges), axis=0)
    blocks[np.arange(len(blocks)), np.tile(np.repeat(np.arange(num_bytes), len(edges)), 2)] = np.tile(
        edges, 2 * num_bytes
    )
    assert np.array_equal(_bits(decode_blocks(name, blocks)), _bits(_oracle(name, blocks)))


@pytest.mark.parametrize("name", MAGNITUDES)
def test_code_books_are_those_of_ggml(name: str) -> None:
    of_ggml = getattr(gguf.quants, name)
    of_ggml.init_grid()
    assert np.array_equal(code_book(name), of_ggml.grid[0, 0])


def test_the_types_have_the_numbers_and_sizes_of_ggml() -> None:
    for type_id, block in BLOCK_TYPES.items():
        kind = gguf.GGMLQuantizationType(type_id)
        assert (kind.name, gguf.GGML_QUANT_SIZES[kind]) == (block.name, (block.block_len, block.block_bytes))
    known = {kind.value: kind.name for kind in gguf.GGMLQuantizationType}
    named = {i: name for i, name in UNSUPPORTED_TYPES.items() if i in known}
    assert named == {i: known[i] for i in named}
    assert {"IQ1_S", "IQ1_M", "MXFP4"} <= set(named.values())
    assert set(DECODERS) == set(BY_NAME) - {"F32", "F16", "BF16"}
