"""Write a GGUF file with layers of Mixtral 8x7B's real width and random weights, for measurements of speed.

    python -m tests.measure.gguf.real_width_file FILE.gguf [--type Q4_K_M] [--layers 2] [--equal-layers]

The tokenizer is the bundled model's. A layer takes 0.8 GB in Q4_K_M, and needs as much memory while it is written. With
--equal-layers all layers have the blocks of the first, so that a file larger than memory can be written: 32 layers of
Q4_K are 26.3 GB, and need 0.8 GB of memory. Gates differ, weights have a mean of zero, embeddings are large and
attention adds little: else the layers turn every text, or all tokens of one, into the same direction, the rows choose
the same experts, and a file larger than memory needs no reading. So a token's experts say nothing of the next one's.
"""

import argparse
import re
from pathlib import Path

import gguf
import numpy as np

from tests.support.checkpoints.gguf import (
    FACTORS,
    GgufShape,
    add_field,
    all_of,
    finish,
    q4_k_m,
    random_blocks,
    random_tensor,
    tensors_of,
    usual_fields,
    vocabulary_fields,
)
from tests.support.paths import DEMO

TYPES = ("Q4_K", "Q5_K", "Q6_K", "IQ3_S", "IQ3_XXS", "IQ2_S", "IQ2_XS", "IQ2_XXS")
DIM, HIDDEN, HEADS, KV_HEADS, EXPERTS = 4096, 14336, 32, 8, 8  # mistralai/Mixtral-8x7B-v0.1's config.json

SCALES = {"token_embd": 64.0, "attn_output": 1 / 8}  # times the usual weights
MEAN_NUMBER = {gguf.GGMLQuantizationType.Q4_K: 7.5, gguf.GGMLQuantizationType.Q5_K: 15.5}  # of 4 and 5 bits


def centred_blocks(rng: np.random.Generator, size: tuple[int, ...], kind: gguf.GGMLQuantizationType) -> np.ndarray:
    """Return random blocks whose weights have a mean of zero (those of Q6_K have it: their scales are signed)."""
    raw = random_blocks(rng, size, kind)
    if kind in MEAN_NUMBER:
        blocks = raw.reshape(-1, gguf.GGML_QUANT_SIZES[kind][1])  # they begin with d, dmin: w = d sc q - dmin mn
        blocks[:, 2:4] = (blocks[:, 0:2].copy().view(np.float16) * np.float16(MEAN_NUMBER[kind])).view(np.uint8)
    return raw


def draw(rng: np.random.Generator, name: str, size: tuple[int, ...], kind: gguf.GGMLQuantizationType) -> np.ndarray:
    """Return a tensor's bytes; those of blocks times the tensor's factor in SCALES."""
    if kind not in FACTORS:
        return random_tensor(rng, size, kind)[0]
    raw = centred_blocks(rng, size, kind)
    scale = next((scale for part, scale in SCALES.items() if part in name), 1.0)
    blocks = raw.reshape(-1, gguf.GGML_QUANT_SIZES[kind][1])
    for at in FACTORS[kind]:
        blocks[:, at : at + 2] = (blocks[:, at : at + 2].copy().view(np.float16) * np.float16(scale)).view(np.uint8)
    return raw


def write(path: Path, type_name: str, num_layers: int, *, has_equal_layers: bool) -> None:
    """Write the file, one tensor after the other."""
    rng = np.random.default_rng(0)
    vocabulary = vocabulary_fields(DEMO / "tokenizer.model")
    num_tokens = len(vocabulary["tokenizer.ggml.tokens"])
    shape = GgufShape(DIM, num_layers, HEADS, KV_HEADS, HIDDEN, EXPERTS, num_tokens)
    type_of = q4_k_m if type_name == "Q4_K_M" else all_of(type_name)
    writer = gguf.GGUFWriter(path, "llama", use_temp_file=not has_equal_layers)
    drawn: dict[tuple[str, gguf.GGMLQuantizationType], np.ndarray] = {}  # with equal layers: by name and type
    for key, value in (usual_fields(shape) | {"llama.context_length": 4096} | vocabulary).items():
        add_field(writer, key, value)
    for name, size, _ in tensors_of(shape):
        kind = type_of(name)
        key = re.sub(r"^blk\.\d+", "blk", name) if has_equal_layers else name, kind
        raw = drawn.get(key)
        if raw is None:
            raw = draw(rng, name, size, kind)
        if has_equal_layers and kind in FACTORS:
            drawn[key] = raw
        writer.add_tensor(name, raw, raw_dtype=kind)
    finish(writer)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, metavar="FILE.gguf")
    parser.add_argument("--type", default="Q4_K_M", choices=["Q4_K_M", *TYPES])
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--equal-layers", action="store_true")
    arguments = parser.parse_args()
    write(arguments.file, arguments.type, arguments.layers, has_equal_layers=arguments.equal_layers)


if __name__ == "__main__":
    main()
