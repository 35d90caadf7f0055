"""Read the 4-bit groups of AWQ, GPTQ and compressed-tensors matrices as blocks, without rounding a weight."""

from concurrent.futures import ThreadPoolExecutor

import torch

from model.checkpoint.quantized.decoders import ROW_STEP, codes_in_groups
from model.checkpoint.stored_tensor import PackedMatrix
from model.ops.huge_pages import empty
from model.ops.weights import BLOCK_SIZES, BlockMatrix, int4_groups
from model.stored_weights import read_parts

CHUNK_CODES = 1 << 18  # unpacked at once, a byte each


def read_group_matrix(stored: PackedMatrix, block_format: str, num_threads: int) -> BlockMatrix:
    """Read a matrix whose groups are runs of inputs in order. Raises CheckpointError."""
    num_outputs, num_inputs = stored.shape
    found = codes_in_groups(stored, read_parts(stored))
    numbers, size = BLOCK_SIZES[block_format]
    repeats = num_inputs // found.scales.shape[1] // numbers
    scales = torch.from_numpy(found.scales).repeat_interleave(repeats, 1)  # [O, groups]
    zeros = torch.from_numpy(found.zeros).to(torch.uint8).repeat_interleave(repeats, 1)  # [O, groups]
    row_bytes = num_inputs // numbers * size
    blocks = empty(num_outputs * row_bytes, torch.uint8).view(num_outputs, row_bytes)
    step = max(ROW_STEP, CHUNK_CODES // num_inputs // ROW_STEP * ROW_STEP)

    def fill(first: int) -> None:
        rows = slice(first, min(first + step, num_outputs))
        codes = torch.from_numpy(found.codes_of(rows.start, rows.stop))
        blocks[rows] = int4_groups(codes, scales[rows], zeros[rows]).blocks

    with ThreadPoolExecutor(num_threads, thread_name_prefix="groups") as threads:
        list(threads.map(fill, range(0, num_outputs, step)))
    return BlockMatrix(block_format, blocks)
