"""Compute the bytes of loaded weights by part of the network, from headers alone. Imports no torch."""

import math
import re
from collections import Counter
from collections.abc import Collection, Mapping

from model.checkpoint.gguf.block_types import BY_NAME
from model.checkpoint.rank_parts import rank_shape
from model.checkpoint.stored_tensor import PackedMatrix, StoredWeight
from model.checkpoint.tensor_names import EMBEDDING, HEAD, PARTS, READ_DTYPES, part_of
from model.cut import WHOLE, Cut, all_cuts

QUANTIZED_PARTS = ("attention", "ffn", "experts", "head")  # the other parts stay in the compute dtype
INT4_BLOCK, INT4_BLOCK_BYTES = 64, 34  # inputs of an output, and their bytes with the factors of two groups
SCALE_BYTES = 4  # of an output, in int8, fp8 and int4
# Formats that the native backend multiplies as a GGUF file stores them -> bytes of a packed block. In some types each
# scale gets a byte of its own.
AS_STORED = (
    *("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q6_K", "IQ4_NL"),
    *("IQ3_S", "IQ3_XXS", "IQ2_S", "IQ2_XS", "IQ2_XXS"),
)
PACKED_BLOCKS = {name: BY_NAME[name].block_bytes for name in AS_STORED}
PACKED_BLOCKS |= {"Q3_K": 114, "Q4_K": 148, "Q5_K": 180, "IQ4_XS": 138}
PACKED_BLOCKS |= {"INT4_G32": 21, "INT4_G64": 37, "INT4_G128": 69}  # of AWQ, GPTQ and compressed-tensors
PACKED_BLOCKS |= {"INT8_G32": 38, "INT8_G64": 70, "INT8_G128": 134}
PACKED_BLOCKS |= {"AFFINE4_G32": 24, "AFFINE4_G64": 40, "AFFINE4_G128": 72}  # of MLX
PACKED_BLOCKS |= {"AFFINE8_G32": 40, "AFFINE8_G64": 72, "AFFINE8_G128": 136}
RESIDUAL_BYTES = 4  # of norms and the sums between layers where weights stay in blocks
ORDER_BYTES = 4  # per input of a matrix whose groups are out of order
EXPERT = re.compile(r"(model\.layers\.\d+\.block_sparse_moe\.experts\.)\d+(\.w[123]\.weight)")


def weight_bytes(
    stored: Mapping[str, StoredWeight],
    element_bytes: int,
    quantization: str,
    block_formats: Collection[str] = (),
    cut: Cut = WHOLE,
    num_kv_heads: int = 1,
) -> dict[str, int]:
    """Return the bytes of each of PARTS; with a `cut`, only those of that rank.

    `element_bytes`: of the compute dtype. `quantization`: none, lossless, int8, int4, fp8.
    `block_formats`: of the weights that stay in the blocks of a GGUF file. A tied head takes 0 bytes in the compute
    dtype; else it is a copy of the embedding.
    """
    sizes = dict.fromkeys(PARTS, 0)
    in_blocks = kept_in_blocks(stored, block_formats)
    for name, tensor in stored.items():
        part, shape = part_of(name), rank_shape(name, tensor.shape, num_kv_heads, cut)
        if name in in_blocks:
            sizes[part] += _packed_bytes(tensor, shape)
        elif part == "norms" and in_blocks:
            sizes[part] += math.prod(shape) * RESIDUAL_BYTES
        else:
            sizes[part] += _tensor_bytes(shape, part, element_bytes, quantization)
    if HEAD not in stored:
        shape = rank_shape(HEAD, stored[EMBEDDING].shape, num_kv_heads, cut)
        if HEAD in in_blocks:
            sizes["head"] = _packed_bytes(stored[EMBEDDING], shape)
        elif quantization != "none":
            sizes["head"] = _tensor_bytes(shape, "head", element_bytes, quantization)
    return sizes


def weight_bytes_of_ranks(
    stored: Mapping[str, StoredWeight],
    element_bytes: int,
    quantization: str,
    block_formats: Collection[str],
    size: int,
    num_kv_heads: int,
    ranks: range | None = None,
) -> dict[str, int]:
    """Return the bytes of each of PARTS on all `size` ranks together, or on those of `ranks`: each has the parts that
    are not cut."""
    total = dict.fromkeys(PARTS, 0)
    for cut in [cut for cut in all_cuts(size) if ranks is None or cut.rank in ranks]:
        for part, count in weight_bytes(stored, element_bytes, quantization, block_formats, cut, num_kv_heads).items():
            total[part] += count
    return total


def kept_in_blocks(stored: Mapping[str, StoredWeight], block_formats: Collection[str]) -> set[str]:
    """Return the names of the weights that stay in blocks, those of `block_formats`; a tied head counts as HEAD.

    Of the experts of a layer each of w1, w2 and w3 must have one format. Others are decoded.
    """
    if all(tensor.dtype not in block_formats for tensor in stored.values()):  # of thousands, and a plan asks often
        return set()
    formats: dict[str, set[str]] = {}
    for name, tensor in stored.items():
        formats.setdefault(_group(name), set()).add(tensor.dtype)
    usable = {group for group, names in formats.items() if len(names) == 1 and names <= set(block_formats)}
    kept = {name for name in stored if _group(name) in usable and part_of(name) in QUANTIZED_PARTS}
    is_tied = HEAD not in stored and EMBEDDING in stored and stored[EMBEDDING].dtype in block_formats
    return kept | {HEAD} if is_tied else kept


def name_of_blocks(stored: Mapping[str, StoredWeight], kept: Collection[str]) -> str:
    """Name the formats of the weights that stay in blocks, the most frequent first: "Q4_K+Q6_K+Q8_0"."""
    counts = Counter(stored[name if name in stored else EMBEDDING].dtype for name in kept)
    return "+".join(sorted(counts, key=lambda dtype: (-counts[dtype], dtype)))


def _group(name: str) -> str:
    """Return what the same matrix of all experts of a layer has in common; of other weights the name."""
    return EXPERT.sub(r"\1*\2", name)


def _packed_bytes(weight: StoredWeight, shape: tuple[int, ...]) -> int:
    block_len = BY_NAME[weight.dtype].block_len if weight.dtype in BY_NAME else int(weight.dtype.rpartition("_G")[2])
    has_order = isinstance(weight, PackedMatrix) and weight.has_order
    order_bytes = ORDER_BYTES * shape[1] if has_order else 0
    return math.prod(shape) // block_len * PACKED_BLOCKS[weight.dtype] + order_bytes


def _tensor_bytes(shape: tuple[int, ...], part: str, element_bytes: int, quantization: str) -> int:
    """Return the bytes of one tensor.

    lossless: 6 bytes per 4 weights, and room for patches. int8 and fp8: 1 byte per weight, a float32 scale per output.
    int4: 17 bytes per 32 weights, and that scale.
    """
    outputs, inputs = math.prod(shape[:-1]), shape[-1]
    if part not in QUANTIZED_PARTS or quantization == "none":
        return outputs * inputs * element_bytes
    if quantization == "lossless":
        return outputs * (2 + 2 * math.ceil(inputs / 64) + 6 * math.ceil(inputs / 4))
    if quantization in ("int8", "fp8"):
        return outputs * (inputs + SCALE_BYTES)
    return outputs * (math.ceil(inputs / INT4_BLOCK) * INT4_BLOCK_BYTES + SCALE_BYTES)


def decoding_warnings(
    stored: Mapping[str, StoredWeight], quantization: str, block_formats: Collection[str]
) -> list[str]:
    """Return a line about matrices that are decoded, and so take more memory than in the file; [] without any."""
    in_blocks = kept_in_blocks(stored, block_formats)
    matrices = {name: tensor for name, tensor in stored.items() if part_of(name) in QUANTIZED_PARTS}
    decoded = {tensor.dtype for name, tensor in matrices.items() if name not in in_blocks}
    formats = sorted(decoded - {*READ_DTYPES})
    if not formats or quantization not in ("none", "lossless"):
        return []
    line = f"weights in {', '.join(formats)} are decoded while they are loaded, and take more memory than in the file"
    return [f"{line}; --quantization int8 takes half of that"]
