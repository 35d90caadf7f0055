"""Random matrices in block formats. Those of GGUF files are decoded by llama.cpp's `gguf` package."""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch
from gguf import GGMLQuantizationType
from gguf.quants import dequantize
from torch import Tensor

from model.config import ModelConfig
from model.mixtral import LayerWeights, Mixtral, MixtralWeights
from model.ops.interface import FfnWeights, Ops
from model.ops.weights import BLOCK_SIZES, BlockMatrix, groups_with_minima, groups_with_zeros

# Byte position of d in a block, and of dmin or m where the format has it.
GGUF_FORMATS = [name for name in BLOCK_SIZES if not name.startswith(("INT", "AFFINE"))]
GROUP_FORMATS = [name for name in BLOCK_SIZES if name not in GGUF_FORMATS]
SCALE_AT = dict.fromkeys(GGUF_FORMATS, 0) | {"Q6_K": 208, "Q2_K": 80, "Q3_K": 108}
MIN_AT = {"Q4_1": 2, "Q5_1": 2, "Q4_K": 2, "Q5_K": 2, "Q2_K": 82}
# Magnitude of random codes times random scales of groups for d = 1, and of minima for dmin = 1.
CODE_SIZE = {"Q4_0": 4.6, "Q4_1": 4.6, "Q5_0": 9.2, "Q5_1": 9.2, "Q8_0": 74, "Q4_K": 240, "Q5_K": 490, "Q6_K": 1370}
CODE_SIZE |= {"Q2_K": 15, "Q3_K": 42, "IQ4_NL": 69, "IQ4_XS": 1280}
CODE_SIZE |= {"IQ3_S": 140, "IQ3_XXS": 142, "IQ2_S": 56, "IQ2_XS": 56, "IQ2_XXS": 53}
MIN_SIZE = {"Q4_1": -4.6 / 7.5, "Q5_1": -9.2 / 15.5, "Q4_K": 32, "Q5_K": 32, "Q2_K": 7.5}


def random_blocks(block_format: str, outputs: int, inputs: int, seed: int = 0) -> BlockMatrix:
    """Draw all bits of a matrix [outputs, inputs], except that d and dmin give products the size of their input."""
    numbers, size = BLOCK_SIZES[block_format]
    if block_format not in GGUF_FORMATS:
        return _random_groups(block_format, outputs, inputs, torch.Generator().manual_seed(seed))
    rng = np.random.default_rng(seed)
    blocks = rng.integers(0, 256, (outputs, inputs // numbers, size), dtype=np.uint8)
    spread = rng.uniform(0.5, 1.5, blocks.shape[:2]) * inputs**-0.5
    set_halves(blocks, SCALE_AT[block_format], spread / CODE_SIZE[block_format])
    if block_format in MIN_AT:
        set_halves(blocks, MIN_AT[block_format], spread / MIN_SIZE[block_format])
    return BlockMatrix(block_format, torch.from_numpy(blocks.reshape(outputs, -1)))


def _random_groups(block_format: str, outputs: int, inputs: int, generator: torch.Generator) -> BlockMatrix:
    size, bits = BLOCK_SIZES[block_format][0], bits_of(block_format)
    codes = torch.randint(1 << bits, (outputs, inputs), generator=generator, dtype=torch.uint8)
    zeros = torch.randint(5, 12, (outputs, inputs // size), generator=generator) << (bits - 4)
    scales = (torch.rand(zeros.shape, generator=generator) + 0.5) * inputs**-0.5 / (5 << (bits - 4))
    if block_format.startswith("AFFINE"):
        minima = -zeros * scales * (torch.rand(zeros.shape, generator=generator) + 0.5)
        return groups_with_minima(codes, scales, minima, bits)
    return groups_with_zeros(codes, scales, zeros, bits)


def in_order(matrix: BlockMatrix, seed: int = 0) -> BlockMatrix:
    """Return the matrix with a random order of its inputs."""
    order = torch.randperm(matrix.shape[1], generator=torch.Generator().manual_seed(seed)).int()
    return replace(matrix, order=order)


def bits_of(block_format: str) -> int:
    """Return the bits of a code in groups: INT4_G32 has 4."""
    return int(block_format.partition("_")[0][-1])


def set_halves(blocks: np.ndarray, at: int, values: np.ndarray) -> None:
    """Write float16 values [..] to bytes at, at + 1 of blocks [.., bytes]."""
    blocks[..., at : at + 2] = values.astype("<f2")[..., None].view(np.uint8)


def decoded(matrix: BlockMatrix) -> Tensor:
    """Return the weights [O, D], float32."""
    if matrix.format not in GGUF_FORMATS:
        weights = _decoded_groups(matrix).float()
        return (
            weights if matrix.order is None else torch.zeros_like(weights).index_copy_(1, matrix.order.long(), weights)
        )
    return torch.from_numpy(dequantize(matrix.blocks.numpy(), GGMLQuantizationType[matrix.format]))


def _decoded_groups(matrix: BlockMatrix) -> Tensor:
    """Return scale * (code - zero) or scale * code + minimum, float64, byte by byte."""
    (numbers, size), bits = BLOCK_SIZES[matrix.format], bits_of(matrix.format)
    groups = matrix.blocks.unflatten(1, (-1, size))  # [O, groups, bytes]
    codes = groups[..., size - numbers * bits // 8 :]
    codes = codes if bits == 8 else torch.cat((codes % 16, codes // 16), dim=-1)
    scales = groups[..., :4].contiguous().view(torch.float32).double()
    rest = groups[..., 4 : size - numbers * bits // 8].contiguous()
    if matrix.format.startswith("AFFINE"):
        # Products of 8 bits and a float32 are exact in float64; the format rounds them to float32 before the sum.
        return ((scales * codes).float() + rest.view(torch.float32)).double().flatten(1)
    zeros = rest if bits == 4 else rest.view(torch.int16)
    return (scales * (codes.double() - zeros)).flatten(1)


def quantized_rows(x: Tensor, block_format: str) -> Tensor:
    """Round each block of x [T, D] to multiples of its largest magnitude / 127, half to even: [T, D] float64."""
    blocks = x.float().unflatten(-1, (-1, BLOCK_SIZES[block_format][0]))
    largest, most = blocks.abs().amax(-1, keepdim=True), torch.tensor(127.0)
    q = torch.where(largest > 0, blocks * (most / largest), 0.0).round()
    return (q.double() * (largest / most).double()).flatten(-2)


def random_block_model(config: ModelConfig, dtype: torch.dtype, ops: Ops) -> Mixtral:
    """Return a network in which q, k, v, output, w1, w3, w2 and head have different formats, by layer too.

    `dtype`: of embedding and attention. The sums between layers are float32, as in a loaded network.
    """
    formats = _cycle()
    generator = torch.Generator().manual_seed(0)

    def matrix(outputs: int, inputs: int) -> BlockMatrix:
        return random_blocks(next(formats), outputs, inputs, seed=outputs)

    def layer() -> LayerWeights:
        q, kv = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
        w1, w3, w2 = (next(formats) for _ in range(3))
        experts = [
            FfnWeights(
                random_blocks(w1, config.hidden_dim, config.dim, seed=3 * e),
                random_blocks(w3, config.hidden_dim, config.dim, seed=3 * e + 1),
                random_blocks(w2, config.dim, config.hidden_dim, seed=3 * e + 2),
            )
            for e in range(max(1, config.num_experts))
        ]
        gate = torch.randn(config.num_experts, config.dim, generator=generator).to(dtype)
        ones = torch.ones(config.dim)
        return LayerWeights(
            attention_norm=ones,
            qkv=ops.pack_linear(matrix(q, config.dim), matrix(kv, config.dim), matrix(kv, config.dim)),
            output=ops.pack_linear(matrix(config.dim, q)),
            ffn_norm=ones,
            ffn=ops.pack_moe(gate, iter(experts)) if config.num_experts else ops.pack_ffn(experts[0]),
        )

    embedding = torch.randn(config.vocab_size, config.dim, generator=generator).to(dtype)
    layers = [layer() for _ in range(config.num_layers)]
    head = ops.pack_linear(matrix(config.vocab_size, config.dim))
    return Mixtral(config, MixtralWeights(embedding, layers, torch.ones(config.dim), head), ops)


def with_sums_in(dtype: torch.dtype, weights: MixtralWeights) -> MixtralWeights:
    """Return the weights with norms in dtype, so that the sums between layers have it too."""
    layers = [
        replace(layer, attention_norm=layer.attention_norm.to(dtype), ffn_norm=layer.ffn_norm.to(dtype))
        for layer in weights.layers
    ]
    return replace(weights, layers=layers, norm=weights.norm.to(dtype))


def _cycle() -> Iterator[str]:
    while True:
        yield from BLOCK_SIZES
