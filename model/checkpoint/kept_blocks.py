"""Choose the weights that stay in the quantized blocks of their file, instead of being decoded. Imports no torch."""

from collections import Counter, defaultdict
from collections.abc import Collection, Mapping

from model.checkpoint.stored_tensor import StoredWeight
from model.checkpoint.tensor_names import EMBEDDING, HEAD, READ_DTYPES, part_of

# Parts whose matrices are quantized, or stay so; the other parts are computed in the compute dtype.
QUANTIZED_PARTS = ("attention", "ffn", "experts", "head")
# Block types that the native backend multiplies -> bytes of a block in memory. K-quants have their scales unpacked.
KEPT_BLOCK_BYTES = {
    "Q4_0": 18,
    "Q4_1": 20,
    "Q5_0": 22,
    "Q5_1": 24,
    "Q8_0": 34,
    "Q4_K": 148,
    "Q5_K": 180,
    "Q6_K": 210,
}


def kept_in_blocks(stored: Mapping[str, StoredWeight], block_formats: Collection[str]) -> dict[str, str]:
    """Return the names of the weights that a backend with kernels for `block_formats` keeps, each with its type.

    The experts of a layer are kept if w1 has one type in all of them, w3 one, and w2 one. A tied head is kept as a copy
    of the embedding's blocks; the embedding itself is decoded.
    """
    matrices = {name: weight.dtype for name, weight in stored.items() if part_of(name) in QUANTIZED_PARTS}
    if HEAD not in stored:
        matrices[HEAD] = stored[EMBEDDING].dtype
    types_of = defaultdict(set)
    for name, dtype in matrices.items():
        types_of[_same_in_all_experts(name)].add(dtype)
    return {
        name: dtype
        for name, dtype in matrices.items()
        if dtype in block_formats and len(types_of[_same_in_all_experts(name)]) == 1
    }


def decoded_blocks(stored: Mapping[str, StoredWeight], kept: Mapping[str, str]) -> list[str]:
    """Return the block types of matrices that are not kept, sorted."""
    return sorted(
        {
            weight.dtype
            for name, weight in stored.items()
            if part_of(name) in QUANTIZED_PARTS and name not in kept and weight.dtype not in READ_DTYPES
        }
    )


def name_of_blocks(kept: Mapping[str, str]) -> str:
    """Name the types of the kept weights, the most frequent first: "Q4_K+Q6_K+Q8_0"; "" if no weights are kept."""
    return "+".join(dtype for dtype, _ in sorted(Counter(kept.values()).items(), key=lambda pair: (-pair[1], pair[0])))


def _same_in_all_experts(name: str) -> str:
    """Remove the expert's number: "...experts.3.w1.weight" -> "...experts.w1.weight"."""
    before, mark, after = name.partition(".experts.")
    return before + mark + after.partition(".")[2] if mark else name
